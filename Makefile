# `make demo` runs the main job, `make test` the tests; each makes the environment it needs from nothing.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test test-compat format clean

# torch goes in first and alone: a plain requirement for it would pull in gigabytes of CUDA libraries.
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) torch
	$(INSTALL) --editable '.[export,ort]'
	touch $@

$(VENV)/.ready-to-test: $(VENV)/.ready
	.ci/system-packages
	$(INSTALL) --editable '.[export,ort,rtx,deit,parquet,serve,report,dev]'
	touch $@

demo: $(VENV)/.ready
	$(BIN)/vimdeploy demo

test: $(VENV)/.ready-to-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest --numprocesses 2 --dist loadfile $(PYTEST_ARGS)

# Outside the gate: the oldest torch and a newer Python than the ones pinned. Needs COMPAT_PYTHON and some gigabytes.
COMPAT_PYTHON ?= python3.12
test-compat:
	$(COMPAT_PYTHON) -m venv .venv-compat
	.venv-compat/bin/python -m pip install --quiet 'torch==2.11.*'
	.venv-compat/bin/python -m pip install --quiet --editable '.[export,ort,rtx,deit,parquet,serve,report,dev]'
	.venv-compat/bin/pytest $(PYTEST_ARGS)

format: $(VENV)/.ready-to-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .venv-compat build dist
