# `make study` and `make test` set everything up themselves: the environment in .venv is built once and reused.
PYTHON ?= python3
BIN := .venv/bin
STUDY := results/study
SECONDS ?= 1200

.PHONY: study test fuzz docs format clean

study: .venv/stamp
	$(BIN)/replknet study --preset standard --out $(STUDY)

test: .venv/stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q -n 2

fuzz: .venv/stamp
	FUZZ_SECONDS=$(SECONDS) $(BIN)/python -m pytest -q -n 2 -m fuzz

docs: .venv/stamp
	$(BIN)/python -m sphinx -W --keep-going -q docs docs/_build

format: .venv/stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv results

.venv/stamp: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@
