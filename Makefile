# `make demo` and `make test` set everything up themselves: the environment in .venv is built once and reused.
PYTHON ?= python3
BIN := .venv/bin
DEMO := results/demo

.PHONY: demo test format clean

demo: .venv/stamp
	$(BIN)/replknet erf replknet_31b --kernel-sizes 3,3,3,3 --kernel-sizes 7,7,7,7 --kernel-sizes 13,13,13,13 \
		--kernel-sizes 31,29,27,13 --size 256 --num-images 8 --out $(DEMO)

test: .venv/stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q -n 2

format: .venv/stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv results

.venv/stamp: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@
