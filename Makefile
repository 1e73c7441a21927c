# Five words: setup, check, test, demo, bench. TORCH=torch==X picks the build of PyTorch (a CPU build, say).
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN := $(VENV)/bin
MARKS ?= not slow and not gpu and not slurm

.PHONY: setup check test demo bench
.DEFAULT_GOAL := help

help:
	@echo "make setup | check | test | demo | bench      (see README.md)"

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable . --group dev
	@touch $@

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pyright
	$(BIN)/typos

test: setup
	$(BIN)/python -m pytest -m "$(MARKS)"

demo: setup
	BIN=$(BIN) bash benchmarks/demo.sh demo

bench: setup
	$(BIN)/python benchmarks/finetune_step.py
