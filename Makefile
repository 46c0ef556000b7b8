# Every target sets up what it needs. `make` alone lists them.

# The interpreter the virtual environment is made with: the first that is new enough.
PYTHONS := python3 python3.13 python3.12 python3.11
PYTHON ?= $(shell for python in $(PYTHONS); do \
    $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)

# PyTorch is installed first and pinned, because it decides how much is downloaded. On Linux the registry's
# own build brings CUDA along, gigabytes of it; a CPU build, such as 2.13.0+cpu, wins over it wherever pip is
# told of one. So without an NVIDIA GPU, either pip is already configured with a source of CPU builds, or
#     make TORCH_INDEX_URL=<the CPU index of PyTorch's "Get started" page>
# names one. Otherwise CUDA is downloaded for nothing, and everything still works.
TORCH ?= torch==2.13.0
TORCH_INDEX_URL ?=

BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help .venv demo test lint types protos bench clean

help:  ## This list.
	@awk -F ':.*## ' '/^[.a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.venv: .venv/.installed  ## The virtual environment with all dependencies.

.venv/.installed: pyproject.toml $(wildcard kernels/cpu/_*.cpp kernels/cpu/_*.h)
	@test -n "$(PYTHON)" || { \
	    echo "Tandem needs Python 3.11 or later. None of $(PYTHONS) is; name one: make PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install $(if $(TORCH_INDEX_URL),--extra-index-url "$(TORCH_INDEX_URL)") "$(TORCH)"
	@# The peers that bench/ compares with are not made for every machine; it leaves out what is missing.
	$(BIN)/pip install --editable ".[dev,bench]" || $(BIN)/pip install --editable ".[dev]"
	@touch $@

demo: .venv/.installed  ## Start a cluster with the bundled model and send it real sentences.
	$(BIN)/tandem demo

# Not `python -m pytest`, which puts this folder on the import path: our kernels/ would pass for the package
# `kernels` that transformers looks for.
# Half of the time a test waits, for Ray or for a process: so two run at once, the slowest folders first.
test: .venv/.installed  ## Run all tests.
	$(BIN)/pytest --numprocesses 2 --dist loadgroup --no-loadscope-reorder

lint: .venv/.installed  ## Check style and formatting.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.installed  ## Check types.
	$(BIN)/python scripts/typecheck.py

protos: .venv/.installed  ## Generate the Python modules of protos/ anew.
	$(BIN)/python scripts/generate_protos.py

bench: .venv/.installed  ## Measure on this machine, in less than 20 minutes; one table of ratios.
	$(BIN)/python bench/engine.py --rounds 2
	$(BIN)/python bench/roofline.py
	$(BIN)/python bench/speculation.py --rounds 2
	$(BIN)/python bench/cluster.py --rounds 2
	$(BIN)/python bench/placement.py --rounds 2
	$(BIN)/python bench/simulate.py
	$(BIN)/python bench/summary.py

clean:  ## Remove everything generated, but not the virtual environment.
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
