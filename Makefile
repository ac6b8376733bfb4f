# Each target sets up what it needs in .venv; PYTHON chooses the interpreter that makes it.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready

.PHONY: demo warm-up test lint types unit coverage bench clean

# constraints.txt pins every package: a plain `torch` would bring gigabytes of CUDA with it.
$(READY): pyproject.toml constraints.txt
	@echo "making $(VENV) and installing pricepix with PyTorch and the development tools, once: some minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(READY)
	@$(BIN)/pricepix-cli demo demo

test: lint types unit coverage

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

unit: $(READY)
	$(BIN)/python -m pytest

# Compiled lines count only when the JIT is off; these tests draw small images, so that is fast enough.
coverage: $(READY)
	NUMBA_DISABLE_JIT=1 $(BIN)/python -m pytest -q --cov --cov-report=term tests/test_pixels.py tests/test_labels.py

bench: $(READY)
	$(BIN)/python -m pytest benchmarks --benchmark-only --benchmark-columns=min,mean,ops \
		--benchmark-min-rounds=3 --benchmark-max-time=0.5

warm-up: $(READY)
	@$(BIN)/pricepix-cli warm-up

clean:
	rm -rf $(VENV) demo build dist .pytest_cache .mypy_cache .ruff_cache .benchmarks .hypothesis
