# `make quickstart` and `make test` are all a newcomer needs; both set up .venv first.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help setup quickstart reproduce miniature test fuzz test-slow test-readme test-kernels test-gpu check docs fix smoke lock clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

setup: $(BIN)/.ready  ## create .venv with the locked versions

# Every package is in the lock, so nothing is left for pip to choose: no CUDA packages arrive on a CPU machine.
# With an NVIDIA driver, torch may bring the ones it was built with.
$(BIN)/.ready: .requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	@if command -v nvidia-smi >/dev/null 2>&1; then $(BIN)/pip install -q $$(grep '^torch==' .requirements.lock); fi
	$(BIN)/pip install -q --no-deps -r .requirements.lock
	@$(BIN)/python -c 'import torch' 2>/dev/null || { \
	  echo 'error: pip chose a CUDA build of torch, and this machine has no CUDA.'; \
	  echo '  Set PIP_EXTRA_INDEX_URL to the CPU wheel index named on pytorch.org, then: make clean setup'; exit 1; }
	$(BIN)/pip install -q --no-deps --no-build-isolation -e .
	@touch $@

# Such a small model gains nothing from a second thread, so two runs train at a time.
quickstart: setup  ## train ByT5, MrT5 and random deletion on a toy task and compare them (minutes)
	OMP_NUM_THREADS=1 $(BIN)/mrt5 pretrain recipes/quickstart_byt5.yaml --resume
	@echo "recipes/quickstart_random.yaml trains alongside the next one; its log is to runs/quickstart-random.log"
	@export OMP_NUM_THREADS=1; \
	  $(BIN)/mrt5 pretrain recipes/quickstart_random.yaml --resume >runs/quickstart-random.log 2>&1 & beside=$$!; \
	  trap "kill $$beside" INT TERM; \
	  $(BIN)/mrt5 pretrain recipes/quickstart.yaml --resume && wait $$beside || { \
	  code=$$?; kill $$beside 2>/dev/null; tail -n 5 runs/quickstart-random.log; exit $$code; }
	$(BIN)/mrt5 evaluate runs/quickstart-byt5-seed42 runs/quickstart-mrt5-seed42 runs/quickstart-random-seed42
	$(BIN)/mrt5 inspect-deletions runs/quickstart-mrt5-seed42 --limit 8

reproduce: setup  ## every experiment of the paper and a report (GPUs); SMOKE=1, ONLY='GLOB ...', JOBS=N
	$(BIN)/mrt5 reproduce $(if $(filter-out 0,$(SMOKE)),--smoke) $(foreach glob,$(ONLY),--only '$(glob)') \
	  $(if $(JOBS),--jobs $(JOBS))

miniature: setup  ## the paper's claims on small models and real text (two cores, an hour or so); PART='GLOB ...'
	$(BIN)/mrt5 reproduce miniature $(foreach glob,$(PART),--only '$(glob)') --jobs $(or $(JOBS),2)

test: setup  ## everything that needs neither minutes, nor a GPU, nor a network
	$(BIN)/pytest -m 'not slow and not gpu and not network' -n auto --maxprocesses 8 --dist loadfile

fuzz: setup  ## property tests with new random seeds, for MINUTES=10; SEED=N repeats those of N
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz.py --minutes $(or $(MINUTES),10) $(if $(SEED),--seed $(SEED))

test-slow: setup  ## the tests that take minutes
	$(BIN)/pytest -m slow

test-readme: setup  ## every command of the documentation, at toy scale (minutes)
	$(BIN)/pytest -m readme

test-gpu: setup  ## the tests that need a CUDA device
	$(BIN)/pytest -m gpu

test-kernels: setup  ## the Triton kernels, in Triton's interpreter and with its compiler; installs triton in .venv/triton
	$(BIN)/pip install -q --no-deps --upgrade --target $(VENV)/triton 'triton==3.9.*'
	PYTHONPATH=$(CURDIR)/$(VENV)/triton TRITON_INTERPRET=1 $(BIN)/pytest tests/unit/test_packed_kernels.py \
	  tests/unit/test_around_attention.py tests/unit/test_choice.py tests/unit/test_forecast.py tests/unit/test_waits.py

check: setup  ## lint, format, types, recipes; changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mrt5 recipe check recipes/

docs: setup  ## write mrt5cli/commands/README.md from --help
	$(BIN)/typer mrt5cli.cli utils docs --name mrt5 --output mrt5cli/commands/README.md

fix: setup  ## format and repair what the linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

smoke: setup  ## the main job in seconds: train, evaluate, inspect
	rm -rf runs/smoke
	$(BIN)/mrt5 pretrain recipes/local_text.yaml --smoke --out runs/smoke
	$(BIN)/mrt5 evaluate runs/smoke --limit 8
	$(BIN)/mrt5 inspect-deletions runs/smoke --text 'The quick brown fox jumps over the lazy dog.'

lock:  ## resolve the ranges of pyproject.toml again, starting from torch 2.13.0
	rm -rf $(VENV)-lock
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/pip install -q torch==2.13.0
	$(VENV)-lock/bin/pip install -q -e '.[dev]'
	$(VENV)-lock/bin/pip freeze --all --exclude-editable | grep -v '^pip==' | sed 's/+cpu$$//' >.requirements.lock
	rm -rf $(VENV)-lock

clean:  ## remove the environment
	rm -rf $(VENV)
