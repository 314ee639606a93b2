# Every target sets up what it needs in .venv, and is quick when nothing changed.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
TRIALS ?= 50

.PHONY: search test test-slow lint format dashboard bench bench-gpu clean

search: $(READY)
	$(BIN)/python sweeps/vit_search.py --trials $(TRIALS)

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadgroup

# Those that take long: storms of kills, and what else is marked `slow`.
test-slow: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadgroup -m slow

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

dashboard: $(READY)
	@test -s storage/studies.db || { echo 'no studies yet; run: make search' >&2; exit 1; }
	@mkdir -p storage/artifacts
	$(BIN)/optuna-dashboard --host 127.0.0.1 --artifact-dir storage/artifacts sqlite:///storage/studies.db

bench: $(READY)
	$(BIN)/python benchmarks/overhead.py --workers 1
	$(BIN)/python benchmarks/overhead.py --workers 2
	$(BIN)/python benchmarks/search_quality.py
	$(BIN)/python benchmarks/double_runs.py
	$(BIN)/python benchmarks/storm.py
	$(BIN)/python benchmarks/report_latency.py
	$(BIN)/python benchmarks/large_study.py
	$(BIN)/python benchmarks/per_trial.py
	$(BIN)/python benchmarks/estimates.py
	$(BIN)/python benchmarks/throughput.py configs
	$(BIN)/python benchmarks/throughput.py seeds
	$(BIN)/python benchmarks/throughput.py sweep --train-size 12000 --repetitions 3
	$(BIN)/python benchmarks/throughput.py accuracy --train-size 4000
	$(BIN)/python benchmarks/packing.py
	$(BIN)/python benchmarks/startup.py

# On a machine with a GPU, in ten minutes: the tests that need one, and what RESULTS.md asks for.
bench-gpu: $(READY)
	PYTHON=$(BIN)/python benchmarks/gpu.sh

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "visweep needs Python 3.11 or newer; try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable . --group dev
	@touch $@

clean:
	rm -rf $(VENV) build dist
