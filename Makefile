# Everything a contributor runs. `make demo` and `make test` set up what they need in .venv.

PYTHON ?= python3
# Models and data that were fetched once are kept here.
export MOBILLM_CACHE ?= $(CURDIR)/.cache/mobillm
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# torch first and by exact version: a range would let pip choose a build with gigabytes of CUDA.
TORCH := $(shell sed -n 's/^torch==/torch==/p' constraints.txt)

# Two processes share the tests: whichever is done takes over what the other one has left.
WORKERS := --numprocesses 2 --dist worksteal

.PHONY: setup demo test check style types coverage fuzz faults bench clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# One stamp for each set of extras, remade when the dependencies or the C sources change.
$(VENV)/.%: pyproject.toml setup.py constraints.txt $(wildcard mobillm/*/*.[ch]) | $(BIN)/python
	$(PIP) install $(TORCH)
	$(PIP) install --constraint constraints.txt --editable '.[$*]'
	@touch $@

setup: $(VENV)/.all

demo: $(VENV)/.bench
	$(BIN)/mobillm demo $(ARGS)

test: $(VENV)/.dev
	$(BIN)/python -m pytest $(WORKERS)

check: $(VENV)/.all style types
	$(BIN)/python -m pytest $(WORKERS)

style: $(VENV)/.all
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.all
	$(BIN)/mypy

# Branches of the protocol core that its own tests do not reach: none.
coverage: $(VENV)/.dev
	$(BIN)/python -m coverage run -m pytest tests/protocol
	$(BIN)/python -m coverage report

# Each target for so many seconds each; what is found is in .cache/fuzz.
FUZZ_SECONDS ?= 120
fuzz: $(VENV)/.fuzz
	for target in endpoint tensor compressed; do \
	  mkdir -p .cache/fuzz/$$target && $(BIN)/python -m tests.fuzz.run $$target \
	    -max_total_time=$(FUZZ_SECONDS) -max_len=4096 -artifact_prefix=.cache/fuzz/ \
	    .cache/fuzz/$$target tests/fuzz/corpus/$$target || exit 1; \
	done

# The whole fault table, the calibration of links, and many sessions on a Ray cluster of two nodes, slow rows
# included; needs root for network namespaces.
faults: $(VENV)/.dev
	$(BIN)/python -m pytest tests/faults tests/benchmarks tests/server/test_engine_ray.py --table -m "slow or not slow"

# Compares ratios with the committed ones; the machine should have nothing else to do.
bench: $(VENV)/.all
	$(BIN)/python -m benchmarks.guard

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build *.egg-info mobillm/kernels/*.so
