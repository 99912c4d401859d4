# gaudi-sweep. `make` prints the targets.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
# Cached bytecode halves every start-up; a worker starts often.
unexport PYTHONDONTWRITEBYTECODE

SEES_GAUDI := -c "import importlib.util as u; print(u.find_spec('habana_frameworks') is not None or '')"
ifndef PYTHON
# On a Gaudi image only its own Python sees Habana's software.
PYTHON := $(if $(shell python3 $(SEES_GAUDI) 2>/dev/null),python3,$(shell command -v python3.11 || command -v python3))
endif
UV_VERSION := 0.13.9
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# On a Gaudi image torch and DeepSpeed are the image's own builds: seen, never replaced.
ON_GAUDI := $(shell $(PYTHON) $(SEES_GAUDI))
IMAGE_OWN := torch deepspeed
# uv does not read pip's settings: hand over pip's folder of local wheels, where there is one.
FIND_LINKS := $(addprefix --find-links=,$(shell $(PYTHON) -m pip config get global.find-links 2>/dev/null || $(PYTHON) -m pip config get :env:.find-links 2>/dev/null))

SPACE ?= lora_rank
STUDY ?= $(SPACE)
ARGS ?=

.PHONY: help
help: ## show this list
	@grep -hE '^[a-z -]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 32

.PHONY: install
install: $(STAMP) ## make the virtual environment with the pinned versions

$(STAMP): pyproject.toml Makefile
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed: make install PYTHON=python3.12 (on Gaudi: an image with Ubuntu 24.04)')"
	$(PYTHON) -m venv $(if $(ON_GAUDI),--system-site-packages) $(VENV)
	$(BIN)/python -m pip install --quiet uv==$(UV_VERSION)
	printf '%s\n' $(if $(ON_GAUDI),$(foreach p,$(IMAGE_OWN),"$(p) ; python_version < '3'")) > $(VENV)/image-own.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --override $(VENV)/image-own.txt $(FIND_LINKS) --editable '.[dev]'
	$(if $(ON_GAUDI),$(BIN)/python -m trial.devices.gaudi_release)
	touch $@

.PHONY: sweep
sweep: $(STAMP) ## run or go on with SPACE=name (ARGS="--set training.max_steps=50")
	$(BIN)/gaudi-sweep run $(SPACE) $(ARGS)

.PHONY: check plan data
check plan data: $(STAMP) ## look at SPACE=name without training (data: rows, what is cut, one row as trained)
	$(BIN)/gaudi-sweep $@ $(SPACE) $(ARGS)

.PHONY: resume status report verify
resume status report verify: $(STAMP) ## go on with, show, explain or verify STUDY=name
	$(BIN)/gaudi-sweep $@ $(STUDY) $(ARGS)

STUDIES ?= $(STUDY)
TRIALS ?=
.PHONY: compare
compare: $(STAMP) ## hold TRIALS="3 7 12" of STUDY side by side, or the best of STUDIES="a b"
	$(BIN)/gaudi-sweep compare $(STUDIES) $(if $(TRIALS),--trials "$(TRIALS)") $(ARGS)

.PHONY: dashboard doctor
dashboard: $(STAMP) ## serve Optuna Dashboard over STUDY=name on loopback
	$(BIN)/gaudi-sweep dashboard $(STUDY) $(ARGS)

doctor: $(STAMP) ## is this machine ready?
	$(BIN)/gaudi-sweep doctor $(ARGS)

ON_CUDA := tests/whole/test_cuda.py tests/test_sweep/ray_backend/real_ray/test_packed.py $(addprefix \
  tests/test_trial/,multi_lora training/test_one_trial.py training/test_resume.py devices $(addprefix \
  packed/test_,failures.py graphs.py independence.py refill.py slot_count.py solo_equality.py))
.PHONY: test test-cuda test-faults lint format
test: $(STAMP) ## run the tests
	$(BIN)/python -m pytest --numprocesses logical --dist loadfile -m "not faults" $(ARGS)

test-cuda: $(STAMP) ## the tests that train, on this machine's CUDA GPU
	TEST_DEVICE=cuda $(BIN)/python -m pytest $(ON_CUDA) $(ARGS)

test-faults: $(STAMP) ## kill real sweeps more than fifty times, fuzz for longer (an hour or more)
	$(BIN)/python -m pytest -m faults
	FUZZ_TIMES=20 $(BIN)/python -m pytest tests/test_sweep/loading tests/test_trial/store -k "fuzzed or mutated or any_bytes" --timeout 1800
	PYTHONPATH=tests:. $(BIN)/python tests/faults/kill_writes.py grid
	PYTHONPATH=tests:. $(BIN)/python tests/faults/kill_writes.py random
	FAULTS_STORAGE="sqlite:///{path}.db" PYTHONPATH=tests:. $(BIN)/python tests/faults/kill_writes.py random --stride 7
	PYTHONPATH=tests:. $(BIN)/python tests/faults/netns_nodes.py
	PYTHONPATH=tests:. $(BIN)/python tests/faults/kill_sweeps.py $(ARGS)

lint: $(STAMP) ## ruff, mypy and the import walls
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## rewrite the code in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: bench bench-quick bench-gpu
bench: $(STAMP) ## measure everything beside the peers, into docs/bench.md (about 40 minutes, idle machine)
	$(BIN)/python tests/bench/bench.py $(ARGS)

bench-quick: $(STAMP) ## the same in about five minutes, one round each: for orientation
	$(BIN)/python tests/bench/bench.py --quick $(ARGS)

bench-gpu: $(STAMP) ## what packing gains on this machine's CUDA GPU, into docs/bench-gpu.md
	$(BIN)/python tests/bench/bench.py --gpu $(ARGS)

.PHONY: clean
clean: ## remove the virtual environment and caches, never runs/
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
