# `make demo` and `make test` work on a fresh machine with Python (3.11 or newer) and make; everything else builds on them.
PYTHON ?= python3
VENV ?= .venv
# torch first and by version: it decides the build. For a GPU build or another version: make install TORCH='torch>=2.11'
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Passed on to the demo, e.g. make demo OPTIONS='--seed 1'
OPTIONS ?=
# Test files side by side, on as many cores as there are, four at most, in the order of tests/conftest.py: left to itself xdist
# keeps the files with few but long tests for the end, where one core waits. PYTEST='-n 0' for one after the other.
PYTEST ?= -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
OUTPUT ?= gpu_results
RESULTS := benchmarks/results/matrix_small/seed0

.PHONY: help install demo test test-slow quality format cards docs bench gpu clean

help:
	@echo "make demo       run the whole life cycle on built-in texts (under 3 minutes on 2 cores)"
	@echo "make test       run the tests (make test-slow: the slow ones too)"
	@echo "make install    only make the environment in $(VENV)"
	@echo "make quality    linter, format check, type checker, advisories   (make format: repair the format)"
	@echo "make bench      the benchmarks, into benchmarks/results (about 13 minutes on 2 cores)"
	@echo "make gpu        what a GPU is to tell, in nine minutes, into gpu_results (OUTPUT=elsewhere)"
	@echo "make cards      render model_cards/, the tables of README and docs and the picture from benchmarks/results"
	@echo "make docs       write docs/api.md from the docstrings"

install: $(STAMP)

$(STAMP): pyproject.toml setup.py hf_era/version.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $(STAMP)

demo: install
	$(BIN)/hf-era run recipes/configs/demo.yaml $(OPTIONS)

test: install
	$(BIN)/python -m pytest $(PYTEST)

test-slow: install
	$(BIN)/python -m pytest $(PYTEST) -m "slow or not slow"

quality: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m hf_era.reporting.cards $(RESULTS) model_cards --check
	$(BIN)/python benchmarks/tables.py --check
	$(BIN)/python docs/make_api.py --check
	$(BIN)/python .ci/audit_dependencies.py

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

cards: install
	$(BIN)/python -m hf_era.reporting.cards $(RESULTS) model_cards
	$(BIN)/python benchmarks/tables.py
	$(BIN)/python benchmarks/picture.py

docs: install
	$(BIN)/python docs/make_api.py

# On one CUDA GPU, in nine minutes at most, with what is installed: `make install TORCH='torch>=2.11'` before, or a PYTHON that has
# torch for CUDA and the package's requirements.
gpu:
	$(if $(wildcard $(STAMP)),$(BIN)/python,$(PYTHON)) benchmarks/gpu.py $(OUTPUT)

# The time limits are of each benchmark's rounds: on a slow machine there are fewer of them. Of growth and of the families, what is not
# measured here stays as it is in the stored results. Of the training step a warm-up round is three steps of each model.
bench: install
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/train_step.py --no-compile --warm-up 1 --time-limit 40
	$(BIN)/python benchmarks/freed_memory.py --time-limit 5
	$(BIN)/python benchmarks/throughput.py --batches 1 --time-limit 20
	$(BIN)/python benchmarks/switches.py --time-limit 20
	$(BIN)/python benchmarks/families.py --families gpt_neo llama --rounds 3
	$(BIN)/python benchmarks/routers.py --time-limit 40
	$(BIN)/python benchmarks/growth.py --rounds 3 --sweeps "sequence length"
	$(BIN)/python benchmarks/attack.py --time-limit 20
	$(BIN)/python benchmarks/data.py --stories 4000 --time-limit 10
	$(BIN)/python benchmarks/routing_op.py --time-limit 5
	$(BIN)/python benchmarks/side_mlp.py --time-limit 5

clean:
	rm -rf $(VENV) runs .mypy_cache .pytest_cache .ruff_cache
