PYTHON ?= python3

.PHONY: test
test: .venv/installed
	.venv/bin/python -m pytest

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/pip install -q -e '.[test]'
	touch $@
