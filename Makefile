# Everything runs in .venv, which is made and filled on first use; a second call installs nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test faults lint format docs bench bench-peers soak clean

demo: $(VENV)/.demo
	$(BIN)/purestep demo $(ARGS)

# One thread a process: the tests are small, and threads that wait for each other on a busy machine are slower than none.
# Two processes, each with whole files, so that what a file compiles is compiled once. JOBS=0 is one process.
JOBS ?= 2
test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

# Runs that are killed 50 or 100 times each, some minutes: at the end they have seen and are what an unbroken run is.
faults: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m faults $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check src tests bench
	$(BIN)/ruff format --check src tests bench
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix src tests bench
	$(BIN)/ruff format src tests bench

docs: $(VENV)/.docs
	$(BIN)/mkdocs build --strict

# purestep against torch on one CPU thread, some 5 minutes on an idle machine; the kept results stay as they are.
QUICK := --only torch, purestep --json runs/bench
bench: $(VENV)/.dev
	$(BIN)/python bench/step_overhead.py $(QUICK)
	$(BIN)/python bench/step.py conv --max-time 5 $(QUICK)
	$(BIN)/python bench/adamw_update.py --max-time 5 $(QUICK)
	$(BIN)/python bench/schedules.py --json runs/bench
	$(BIN)/python bench/orders.py --json runs/bench
	$(BIN)/python bench/measure_self_check.py --max-time 1 --json runs/bench/measure_self_check.json

# Everything, with the peers, on one thread and on all, some 40 minutes: what docs/performance.md has. They are not
# pinned: each result says which versions it is of.
bench-peers: $(VENV)/.peers
	$(BIN)/python bench/step_overhead.py
	$(BIN)/python bench/step.py conv gpt accumulate ensemble --max-time 15
	$(BIN)/python bench/step.py conv gpt --threads all --max-time 15 --only 'fused AdamW' donated
	$(BIN)/python bench/adamw_update.py
	$(BIN)/python bench/adamw_update.py --threads all --only 'torch,' donated
	$(BIN)/python bench/accumulation.py
	$(BIN)/python bench/accumulation_cost.py
	$(BIN)/python bench/accumulation_growth.py
	$(BIN)/python bench/kernels.py --fill
	$(BIN)/python bench/schedules.py
	$(BIN)/python bench/schedule_values.py
	$(BIN)/python bench/schedule_peers.py
	$(BIN)/python bench/randomness.py
	$(BIN)/python bench/dropout.py
	$(BIN)/python bench/dropout_curves.py
	$(BIN)/python bench/optimizers.py
	$(BIN)/python bench/optimizer_memory.py
	$(BIN)/python bench/data.py
	$(BIN)/python bench/orders.py
	$(BIN)/python bench/checkpoint.py save load call
	$(BIN)/python bench/fill_tables.py

# 20,000 steps with logging and saving, which must not leak, some 3 minutes; and the laws on models of transformers,
# compiled as well, some 10 minutes; make soak ARGS='--only BERT T5'.
soak: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python bench/soak.py --json runs/bench/soak.json
	OMP_NUM_THREADS=1 $(BIN)/python bench/architectures.py --json runs/bench/architectures.json $(ARGS)

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "purestep needs Python 3.11 or newer; name one with make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)

# torch first and by its pinned version, so that no other requirement can choose another build of it.
$(VENV)/.torch: $(VENV)/bin/python constraints.txt
	$(PIP) $$(grep '^torch==' constraints.txt)
	touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(PIP) -e '.[demo]'
	touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	$(PIP) -e '.[dev]'
	touch $@ $(VENV)/.demo

$(VENV)/.docs: $(VENV)/.torch pyproject.toml
	$(PIP) -e '.[dev,docs]'
	touch $@

$(VENV)/.peers: $(VENV)/.torch pyproject.toml
	$(PIP) -e '.[dev,peers]'
	touch $@ $(VENV)/.dev $(VENV)/.demo

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis runs site
