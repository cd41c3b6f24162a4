# Everything below makes its own environment in .venv from pinned constraints; nothing else is needed but Python 3.11.
PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: quickstart test check setup clean

quickstart: setup
	$(BIN)/ee-ray run sweeps/quickstart.yaml

test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf .venv store reports/quickstart
