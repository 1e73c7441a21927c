# Six words: setup, check, test, demo, reproduce, bench. TORCH=torch==X picks the build of PyTorch (a CPU build, say).
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN := $(VENV)/bin
MARKS ?= not slow and not gpu and not slurm

.PHONY: setup check test demo reproduce bench
.DEFAULT_GOAL := help

help:
	@echo "make setup | check | test | demo | reproduce | bench      (see README.md)"

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
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/typos

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m "$(MARKS)"

# Records to report with a real model on real text: about 15 minutes on two cores that multiply bfloat16, longer on others;
# 700 MB of downloads and cache.
DEMO ?= demo
demo: setup
	$(BIN)/safesynthdp pipeline --config recipes/demo.yaml --output_dir $(DEMO)

# The evidence on two cores, every word goes on after a stop: grid, shadow pools, private prediction, one report (two
# hours); then the same epsilons trained longer, and 40,000 texts of each (three hours more).
REPRODUCE ?= runs/vader_cpu
reproduce: setup
	OMP_NUM_THREADS=1 $(BIN)/safesynthdp pipeline --config recipes/pipeline_vader_cpu.yaml --output_dir $(REPRODUCE)
	OMP_NUM_THREADS=1 $(BIN)/safesynthdp pipeline --config recipes/pipeline_vader_cpu_long.yaml \
		--output_dir $(REPRODUCE)_long
	for cell in eps1-seed0 eps8-seed0; do grid=$(REPRODUCE)_long; \
		OMP_NUM_THREADS=1 $(BIN)/safesynthdp evaluate --max_train_records 5000 --reference_model null --holdout_is_public true \
		--embedding_model minilm --real $$grid/$$cell/run --holdout $$grid/$$cell/run --synthetic $$grid/$$cell/synthetic \
		--baseline $$grid/untuned --output_dir $$grid/$$cell/evaluation_5000 || exit 1; done

bench: setup
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/step_ratio.py
	$(BIN)/python benchmarks/sampling.py
