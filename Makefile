# `make demo` runs the main job, `make test` the tests; each makes the environment it needs from nothing.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test test-compat lint format clean

# torch goes in first and alone: a plain requirement for it would pull in gigabytes of CUDA libraries.
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --constraint constraints.txt torch
	$(INSTALL) --constraint constraints.txt --editable '.[export,ort,dev]'
	touch $@

demo: $(VENV)/.ready
	$(BIN)/vimdeploy demo

test: $(VENV)/.ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest $(PYTEST_ARGS)

# Outside the gate: the oldest torch and a newer Python than the ones pinned. Needs COMPAT_PYTHON and some gigabytes.
COMPAT_PYTHON ?= python3.12
test-compat:
	$(COMPAT_PYTHON) -m venv .venv-compat
	.venv-compat/bin/python -m pip install --quiet 'torch==2.11.*'
	.venv-compat/bin/python -m pip install --quiet --editable '.[export,ort,dev]'
	.venv-compat/bin/pytest $(PYTEST_ARGS)

format: $(VENV)/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .venv-compat build dist
