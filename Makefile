# Python to make the environment with; 3.11 or later.
PYTHON ?= python3

.PHONY: run test check
run: .venv/installed
	.venv/bin/multilevel train

# One process a core, with one thread each: threads of several processes would wait for each other.
test: .venv/betty
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n auto --dist loadfile

# Lint and types. mypy finds the rooms under their import names through links, as it does not run import hooks.
check: .venv/installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	rm -rf build/types && mkdir -p build/types/multilevel
	ln -s $(addprefix $(CURDIR)/,$(wildcard multilevel/*) solvers problems levels recipes) build/types/multilevel/
	cd build/types && $(CURDIR)/.venv/bin/mypy --config-file $(CURDIR)/pyproject.toml -p multilevel

.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "multilevel needs Python 3.11 or later; make PYTHON=/path/to/python3.11 ..." >&2; exit 2; }
	$(PYTHON) -m venv .venv
	.venv/bin/pip install -q -e '.[test]'
	touch $@

# Betty 0.2.1, whose metadata no current Python satisfies: the bridge to it is tested against it.
.venv/betty: .venv/installed
	.venv/bin/pip install -q --no-deps --ignore-requires-python betty-ml==0.2.1
	touch $@
