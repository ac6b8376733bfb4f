# Each target sets up what it needs in .venv; PYTHON chooses the interpreter that makes it.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready

.PHONY: demo test lint types unit coverage bench release-check audit clean

# constraints.txt pins every package: a plain `torch` would bring gigabytes of CUDA with it.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[all]' --group dev
	touch $@

demo: $(READY)
	$(BIN)/pricepix-cli demo demo

test: lint types unit coverage

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/typos

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

# What tests/release_check.py says at its top; TAG=v1.2.3 compares the tag with the version. Leaves dist/.
release-check: $(READY)
	$(BIN)/python tests/release_check.py $(if $(TAG),--tag $(TAG))

# Known vulnerabilities of every pinned package, and the licences of what is installed. Asks a public database.
audit: $(READY)
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/audit/bin/python -m pip install --quiet --constraint constraints.txt --group audit
	$(VENV)/audit/bin/pip-licenses --python $(BIN)/python --order license
	$(VENV)/audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict

clean:
	rm -rf $(VENV) demo build dist .pytest_cache .mypy_cache .ruff_cache .benchmarks .hypothesis
