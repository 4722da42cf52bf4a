PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint nightly benchmarks clean

demo: $(STAMP)
	$(BIN)/pkt demo --out runs/demo

test: $(STAMP)
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 -m "not slow"

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

nightly: $(STAMP)
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest
	$(BIN)/python benchmarks/attribution.py
	$(BIN)/python benchmarks/alignment_memory.py
	$(BIN)/python benchmarks/planted_truth.py
	$(BIN)/python benchmarks/sandbox.py

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) runs
