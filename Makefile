# Two commands matter: `make demo` and `make test`. Both make their environment themselves.

PYTHON ?= python3
VENV   ?= .venv
# torch comes first and alone, so that this line decides which build it is: a CUDA one is `make TORCH="torch"`.
TORCH  ?= torch==2.13.0
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: demo test bench lint clean

demo: $(READY)           ## train, break everything, and see that nothing is lost: a few minutes
	$(BIN)/python -m tests.demo

test: $(READY) lint      ## lint, types, import contracts, all tests
	$(BIN)/pytest

bench: $(READY)          ## log(), import and sync against their peers, one table
	$(BIN)/python -m tests.bench

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $(READY)

clean:
	rm -rf $(VENV) demo-output build
