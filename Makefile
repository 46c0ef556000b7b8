# Every target sets up what it needs. `make` alone lists them.

# The interpreter the virtual environment is made with: the first that Ray has wheels for.
PYTHONS := python3 python3.14 python3.13 python3.12 python3.11
PYTHON ?= $(shell for python in $(PYTHONS); do \
    $$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null && echo $$python && break; done)

# On Linux the registry's own build of PyTorch brings CUDA along, gigabytes of it; a CPU build, such as
# 2.13.0+cpu, wins over it wherever pip is told of one. So without an NVIDIA GPU, either pip is already
# configured with a source of CPU builds, or
#     make TORCH_INDEX_URL=<the CPU index of PyTorch's "Get started" page>
# names one. Otherwise CUDA is downloaded for nothing, and everything still works.
TORCH := torch==2.13.0
TORCH_INDEX_URL ?=

BIN := .venv/bin
# $(call PIP_INSTALL,constraints,environment). The isolated environment that builds our extension takes its constraints
# from a variable of its own from pip 25.3 on.
PIP_INSTALL = PIP_CONSTRAINT=$(1) PIP_BUILD_CONSTRAINT=$(1) $(2)/bin/pip install \
    $(if $(TORCH_INDEX_URL),--extra-index-url "$(TORCH_INDEX_URL)")

EXTENSION := $(wildcard kernels/cpu/_*.cpp kernels/cpu/_*.h)

.DEFAULT_GOAL := help
.PHONY: help .venv demo test fuzz chaos soak image lint types protos bench lock test-lowest test-latest clean

help:  ## This list.
	@awk -F ':.*## ' '/^[.a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.venv: .venv/.installed  ## The virtual environment with all dependencies.

.venv/.installed: pyproject.toml constraints.txt $(EXTENSION)
	@test -n "$(PYTHON)" || { \
	    echo "Tandem needs Python 3.11 to 3.14. None of $(PYTHONS) is; name one: make PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv .venv
	@# The peers that bench/ compares with are not made for every machine; it leaves out what is missing.
	$(call PIP_INSTALL,constraints.txt,.venv) --editable ".[dev,bench]" || \
	    $(call PIP_INSTALL,constraints.txt,.venv) --editable ".[dev]"
	@touch $@

demo: .venv/.installed  ## Start a cluster with the bundled model and send it real sentences.
	$(BIN)/tandem demo

# Not `python -m pytest`, which puts this folder on the import path: our kernels/ would pass for the package
# `kernels` that transformers looks for.
# Half of the time a test waits, for Ray or for a process: so two run at once, file by file, the slowest folders first.
test: .venv/.installed  ## Run all tests.
	$(BIN)/pytest --numprocesses 2 --no-loadscope-reorder

FUZZ := 20000
fuzz: .venv/.installed  ## Send FUZZ=20000 malformed inputs to each protocol; another SEED= makes others.
	TANDEM_FUZZ_INPUTS=$(FUZZ) TANDEM_FUZZ_SEED=$(or $(SEED),0) $(BIN)/pytest tests/cluster/ingress/edge/test_fuzz.py

chaos: .venv/.installed  ## Kill, stop and fill everything under load, and measure for how long nobody is answered.
	$(BIN)/pytest -m "ray" tests/chaos

SECONDS := 1200
soak: .venv/.installed  ## Mixed traffic for SECONDS=1200; fails where memory, files, pages or objects grow.
	$(BIN)/python bench/soak.py --seconds $(SECONDS)

DEVICE := cpu
image: .venv/.installed  ## Build the container image DEVICE=cpu or gpu, and prove that it serves.
	$(BIN)/python scripts/build_image.py $(DEVICE) \
	    $(if $(TORCH_INDEX_URL),--build-arg "TORCH_INDEX_URL=$(TORCH_INDEX_URL)")

lint: .venv/.installed  ## Check style and formatting.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.installed  ## Check types.
	$(BIN)/python scripts/typecheck.py

protos: .venv/.installed  ## Generate the Python modules of protos/ anew.
	$(BIN)/python scripts/generate_protos.py

bench: .venv/.installed  ## Measure on this machine, in less than 20 minutes; one table of ratios.
	$(BIN)/python bench/engine.py --rounds 2 --models "random T5-small" quickstart \
	    --loads 1 8 stream arrivals "beam 4"
	$(BIN)/python bench/roofline.py
	$(BIN)/python bench/speculation.py --rounds 2
	$(BIN)/python bench/cluster.py --rounds 2
	$(BIN)/python bench/placement.py --rounds 2
	$(BIN)/python bench/simulate.py
	$(BIN)/python bench/summary.py

# The parts of the tests that depend on other projects' behaviour: transformers and CTranslate2, Ray, gRPC, OpenAI's
# client, PyAV.
PEERS := tests/parity tests/cluster tests/protos tests/face tests/workers/requests/media

# uv resolves for every platform at once, which pip cannot. Only these two targets need it.
UV := build/uv/bin/uv
COMPILE := $(UV) pip compile --quiet --no-annotate --extra dev --extra bench pyproject.toml build/also.in

lock: $(UV) build/also.in  ## Write constraints.txt anew. UPGRADE=--upgrade: with the newest versions.
	$(COMPILE) --universal --fork-strategy fewest --python-version 3.11 --custom-compile-command "make lock" \
	    $(UPGRADE) --output-file constraints.txt

test-lowest: .venv-lowest/.installed  ## Run the tests against other projects with the oldest versions allowed.
	.venv-lowest/bin/pytest $(PEERS)

test-latest: build/also.in  ## The same with the newest versions allowed.
	$(PYTHON) -m venv .venv-latest
	$(call PIP_INSTALL,build/also.in,.venv-latest) --upgrade --upgrade-strategy eager --editable ".[dev,bench]"
	.venv-latest/bin/pytest $(PEERS)

.venv-lowest/.installed: pyproject.toml build/also.in $(UV) $(EXTENSION)
	$(PYTHON) -m venv --clear .venv-lowest
	$(COMPILE) --resolution lowest-direct --python .venv-lowest/bin/python --output-file build/lowest.txt --upgrade
	$(call PIP_INSTALL,build/lowest.txt,.venv-lowest) --editable ".[dev,bench]"
	@touch $@

$(UV):
	$(PYTHON) -m venv build/uv
	build/uv/bin/pip install uv

# What is installed besides pyproject.toml's dependencies: PyTorch of one version, and what builds our extension.
build/also.in: pyproject.toml Makefile
	@mkdir -p build
	@$(PYTHON) -c 'import tomllib; print("$(TORCH)", *tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], \
	    sep="\n")' > $@

clean:  ## Remove everything generated, but not the virtual environments.
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv*/*' -prune -exec rm -rf {} +
