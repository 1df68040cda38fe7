# quickstart: train, evaluate and print a table on the embedded data; test, lint: what CI runs.
# Needs python3 (3.11 or newer, with venv) and make; everything else goes into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Where the quickstart's results go; empty: $DIFFUP_HOME/results/quickstart, else ~/.diffup/results/quickstart.
RESULTS ?=
# More options for experiments/quickstart.py, e.g. make quickstart ARGS=--dry-run
ARGS ?=
# More options for pytest, e.g. make test PYTEST_ARGS=tests/diffup
PYTEST_ARGS ?=
# Processes that run tests; those of a file stay in one of them (tests/conftest.py).
TEST_JOBS ?= 2

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-fast test-tools lint format clean
# Two goals at once (make lint test) share one environment and one pair of cores.
.NOTPARALLEL:

help:
	@echo "make quickstart   train and evaluate on the embedded data, print the table (results: RESULTS=DIR)"
	@echo "make test         run the tests"
	@echo "make test-fast    run those without a marker: no Ray, LaTeX, browser, nothing slow"
	@echo "make test-tools   run those of the benchmarks and of the fault injection"
	@echo "make lint         ruff check, ruff format --check, mypy, lint-imports"
	@echo "make format       ruff: sort imports, format"
	@echo "make clean        remove .venv and caches; results stay"

# A stamp is touched last, so an install that was cut short is done again.
$(VENV)/.diffup: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("DiffUp needs Python 3.11 or newer, this is " + sys.version.split()[0] + \
		": make PYTHON=/path/to/python3 ..." if sys.version_info < (3, 11) else 0)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing DiffUp and PyTorch into $(VENV): about 6.5 GB with PyTorch's CUDA wheels, some minutes the first time"
	@$(BIN)/python -m pip install -c constraints.txt -e '.[clip,demo,platform]'
	@touch $@

$(VENV)/.diffup-dev: $(VENV)/.diffup
	@$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[clip,demo,platform,dev]'
	@touch $@

quickstart: $(VENV)/.diffup
	@HF_HUB_OFFLINE=1 $(BIN)/python experiments/quickstart.py $(if $(RESULTS),--results '$(RESULTS)') $(ARGS)

# Nothing may be printed after pytest: its last line is the summary that CI reads.
FAST = not (ray or latex or browser or slow or gpu or tools)
PYTEST = $(BIN)/python -m pytest -n $(TEST_JOBS) --no-loadscope-reorder

test: $(VENV)/.diffup-dev
	@$(PYTEST) -m "not tools" $(PYTEST_ARGS)

test-fast: $(VENV)/.diffup-dev
	@$(PYTEST) -m "$(FAST)" $(PYTEST_ARGS)

test-tools: $(VENV)/.diffup-dev
	@$(BIN)/python -m pytest -m tools $(PYTEST_ARGS)

lint: $(VENV)/.diffup-dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(VENV)/.diffup-dev
	@$(BIN)/ruff check --select I --fix .
	@$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
