# Each target sets up what it needs in .venv; PYTHON chooses the interpreter that makes it.
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= auto
BIN = $(VENV)/bin
READY = $(VENV)/.ready

# The tests that need no torch, on any Python: `make test-core PYTHON=python3.13`, with TESTS=... for some of them.
CORE = .venv-core-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
CORE_READY = $(CORE)/.ready
TESTS ?= tests

.PHONY: demo warm-up test test-all test-core lint types unit fuzz test-kills test-scenes test-gpu-kernel test-compiling \
	test-benchmarks coverage bench bench-page bench-check gpu-check gpu-wheels docs release-check audit clean

# constraints.txt pins every package: a plain `torch` would bring gigabytes of CUDA with it.
$(READY): pyproject.toml constraints.txt
	@echo "making $(VENV) and installing pricepix with PyTorch and the development tools, once: some minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[all]' --group dev
	touch $@

$(CORE_READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(CORE)
	$(CORE)/bin/python -m pip install --quiet --upgrade pip
	$(CORE)/bin/python -m pip install --quiet --constraint constraints.txt \
		--editable '.[dask,xarray,distributed,report,cloud,calendars,sample,explore]' --group test
	touch $@

demo: $(READY)
	@$(BIN)/pricepix-cli demo demo

# What a developer runs before every push: six minutes on two idle cores.
test: lint types unit

# Everything, at full numbers: every night.
test-all: lint types
	$(MAKE) unit PRICEPIX_KILLS=50 PRICEPIX_SCENES=2000 PRICEPIX_FUZZ=1000
	PRICEPIX_KILLS=1000000 $(BIN)/python -m pytest tests/test_kills.py
	$(BIN)/python -m pytest -m nightly
	$(MAKE) test-gpu-kernel test-benchmarks coverage release-check

test-core: $(CORE_READY)
	$(CORE)/bin/python -m pytest -n $(WORKERS) --dist loadfile -m "not nightly" $(TESTS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/typos

types: $(READY)
	$(BIN)/mypy

# What all kernels need is compiled once, by as many processes as there are cores; else every worker compiles it. A file
# stays in one process, so that what its tests share is made once. What wants the whole machine comes after.
unit: $(READY)
	@$(BIN)/python tests/compiled_code.py
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not nightly and not serial" $(ARGS)
	$(BIN)/python -m pytest -m "serial and not nightly" $(ARGS)

# Every parser of foreign bytes, for FUZZ_SECONDS each, guided by coverage. atheris runs on Linux and macOS.
FUZZ_SECONDS ?= 60
FUZZED = store-root cache-root names manifest chunk-bits chunk-uint8 run-json run-yaml run-metrics checkpoint \
	table-csv table-parquet yaml
fuzz: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group fuzz
	set -e; for parser in $(FUZZED); do $(BIN)/python tests/fuzz_parsers.py $$parser -max_total_time=$(FUZZ_SECONDS); done

test-kills: $(READY)
	$(BIN)/python -m pytest tests/test_scale_faults.py tests/test_kills.py

test-scenes: $(READY)
	$(BIN)/python -m pytest -n $(WORKERS) tests/test_fast_path.py

# The GPU's kernel without a GPU: in CUDA's simulator, and compiled for the CPU as one thread a block.
test-gpu-kernel: $(READY)
	NUMBA_ENABLE_CUDASIM=1 $(BIN)/python -m pytest tests/test_render_cuda.py
	PRICEPIX_CUDA_ON_CPU=1 $(BIN)/python -m pytest tests/test_render_cuda.py

# What compiles from nothing: another CPU, cold caches.
test-compiling: $(READY)
	$(BIN)/python -m pytest -m nightly tests/test_other_cpus.py tests/test_compile_cache.py tests/test_warm_up.py

test-benchmarks: $(READY)
	PRICEPIX_BENCH=tiny $(BIN)/python -m pytest benchmarks --benchmark-disable

# Compiled lines count only when the JIT is off; these tests draw small images, so that is fast enough.
coverage: $(READY)
	NUMBA_DISABLE_JIT=1 $(BIN)/python -m pytest -q --cov --cov-report=term tests/test_pixels.py tests/test_labels.py

BENCH = -m pytest --benchmark-only --benchmark-columns=min,mean,ops --benchmark-min-rounds=3 --benchmark-max-time=0.5
bench: $(READY)
	$(BIN)/python $(BENCH) --results build/bench.json benchmarks

# The tables of docs/performance.md: this machine as it is, and as one with AVX2 and no AVX-512.
RESULTS = benchmarks/results
bench-page: $(READY)
	$(BIN)/python $(BENCH) --results $(RESULTS)/native.json benchmarks/test_render_speed.py
	NUMBA_CPU_NAME=haswell NUMBA_CPU_FEATURES= $(BIN)/python $(BENCH) --results $(RESULTS)/avx2.json benchmarks/test_render_speed.py
	$(BIN)/python benchmarks/report.py

# The site, in build/site: strict, so that a broken link or a missing reference fails.
docs: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group docs
	$(BIN)/python -m mkdocs build --strict

# Instructions an image against the table that is kept: fails where one rose by more than 3%. Needs valgrind.
bench-check: $(READY)
	$(BIN)/python benchmarks/instructions.py

# What tests/release_check.py says at its top; TAG=v1.2.3 compares the tag with the version. Leaves dist/.
release-check: $(READY)
	$(BIN)/python tests/release_check.py $(if $(TAG),--tag $(TAG))

# Known vulnerabilities of every pinned package, and the licences of what is installed. Asks a public database.
audit: $(READY)
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/audit/bin/python -m pip install --quiet --constraint constraints.txt --group audit
	$(VENV)/audit/bin/pip-licenses --python $(BIN)/python --order license
	$(VENV)/audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip

# What a GPU does, in five minutes. It sets nothing up: PYTHON has torch for the GPU, GPU_WHEELS what is missing beside it.
gpu-check:
	$(PYTHON) benchmarks/gpu_check.py --out build/gpu_check.json $(if $(GPU_WHEELS),--wheels $(GPU_WHEELS))

# What gpu-check needs on a machine without a network, but for torch.
gpu-wheels: $(READY)
	$(BIN)/python benchmarks/gpu_wheels.py build/gpu-wheels

warm-up: $(READY)
	@$(BIN)/pricepix-cli warm-up

clean:
	rm -rf $(VENV) .venv-core-* demo build dist .pytest_cache .mypy_cache .ruff_cache .benchmarks .hypothesis
