# Python to make the environment with; 3.11 or later.
PYTHON ?= python3

.PHONY: run test test-matrix check docs build/types
run: .venv/installed
	.venv/bin/multilevel train

# One process a core, with one thread each: threads of several processes would wait for each other. In the files' own
# order: sorted by their number of tests, the few long ones would come last, and one core would end alone.
test: .venv/betty
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

# A part of the tests on this machine's oldest Python with the lowest versions and on its newest with the highest.
test-matrix:
	$(PYTHON) tests/matrix.py

# Lint and types.
check: .venv/installed build/types
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	cd build/types && $(CURDIR)/.venv/bin/mypy --config-file $(CURDIR)/pyproject.toml -p multilevel

# The pages, with pictures drawn by the program, into build/site. The variable keeps a notice to authors of other sites off.
docs: .venv/installed build/types
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict

# What runs no import hooks, mypy and mkdocstrings, finds the rooms under their import names through links.
build/types:
	rm -rf $@ && mkdir -p $@/multilevel
	ln -s $(addprefix $(CURDIR)/,$(wildcard multilevel/*) solvers problems levels recipes) $@/multilevel/

# constraints.txt: what every test passed with, so that the range of pyproject.toml brings nothing larger or untested.
.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "multilevel needs Python 3.11 or later; make PYTHON=/path/to/python3.11 ..." >&2; exit 2; }
	$(PYTHON) -m venv .venv
	.venv/bin/pip install -q -c constraints.txt -e '.[test]'
	touch $@

# Betty 0.2.1, whose metadata no current Python satisfies: the bridge to it is tested against it.
.venv/betty: .venv/installed
	.venv/bin/pip install -q --no-deps --ignore-requires-python betty-ml==0.2.1
	touch $@
