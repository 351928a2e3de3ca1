# Python for the environment; 3.11 or later.
PYTHON ?= python3

.PHONY: run test test-matrix check docs build/types
run: .venv/installed
	.venv/bin/multilevel train

# One process per core, with one thread each, since threads of several processes would wait for each other. Files keep
# their order: sorted by number of tests, the few long files would come last and leave the other cores idle.
test: .venv/betty
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

# Part of the tests on this machine's oldest Python with the lowest versions and on its newest with the highest.
test-matrix:
	$(PYTHON) tests/matrix.py

# Lint and types.
check: .venv/installed build/types
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	cd build/types && $(CURDIR)/.venv/bin/mypy --config-file $(CURDIR)/pyproject.toml -p multilevel

# The pages, with pictures drawn by the program, in build/site. The variable turns off a notice for other sites.
docs: .venv/installed build/types
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict

# Links through which tools without import hooks (mypy, mkdocstrings) find the packages under their import names.
build/types:
	rm -rf $@ && mkdir -p $@/multilevel
	ln -s $(addprefix $(CURDIR)/,$(wildcard multilevel/*) solvers problems levels recipes) $@/multilevel/

# constraints.txt has the versions with which every test passed, so that pyproject.toml's ranges bring nothing untested.
.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "multilevel needs Python 3.11 or later; make PYTHON=/path/to/python3.11 ..." >&2; exit 2; }
	$(PYTHON) -m venv .venv
	.venv/bin/pip install -q -c constraints.txt -e '.[test]'
	touch $@

# Betty 0.2.1, whose metadata excludes every current Python; the bridge is tested against it.
.venv/betty: .venv/installed
	.venv/bin/pip install -q --no-deps --ignore-requires-python betty-ml==0.2.1
	touch $@
