# Everything a newcomer needs is two commands: `make run` and `make test`. Each first installs what it needs
# into a virtual environment, and again when requirements/ or pyproject.toml has changed.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
UV := $(VENV)/uv/bin/uv

# What is installed: what `make run` needs, what `make test` needs on top, and everything. A larger set
# holds the smaller ones.
RUN_READY := $(VENV)/.run-ready
TEST_READY := $(VENV)/.test-ready
CHECK_READY := $(VENV)/.check-ready
HOLDS_run := run
HOLDS_test := run test
HOLDS_check := run test check
SIZE_run := 85 MB
SIZE_test := 170 MB
SIZE_check := 435 MB
ifeq ($(GATEWAY_TEST_ALL),1)
TEST_READY := $(CHECK_READY)
endif

# The Pythons that pyproject.toml names.
PYTHONS := $(shell sed -n 's/.*Python :: \(3\.[0-9]*\)".*/\1/p' pyproject.toml)

# With JUNIT=folder each run of tests writes a report there.
report = $(if $(JUNIT),--junitxml=$(JUNIT)/$(1).xml)

.DEFAULT_GOAL := help
.NOTPARALLEL: # two installations into one environment would get into each other's way
.PHONY: help run test test-quick test-pythons coverage lint types check bench attack compose-test lock clean

help: ## list the commands
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(RUN_READY) ## start one node with an embedded Valkey and the demo page; Ctrl-C stops it
	@exec $(BIN)/webflow-gateway dev $(ARGS)

test: $(TEST_READY) ## run all tests (ARGS='-k name' or a path narrows it)
	@$(BIN)/python -m pytest -n auto $(call report,tests) $(ARGS)

test-quick: $(TEST_READY) ## run the tests that start no process
	@$(BIN)/python -m pytest -n auto -m 'not real' $(call report,quick) $(ARGS)

coverage: $(TEST_READY) ## hold what each module's own tests reach of it against its floor (ARGS=--write raises floors)
	@$(BIN)/python -m tests.coverage_floors -q $(ARGS)

test-pythons: ## run test-quick on every Python that pyproject.toml names and this machine has
	@$(MAKE) --no-print-directory --keep-going $(PYTHONS:%=test-python-%)

# In an environment for each Python, or in $(VENV) if that has this one. A Python may also be pyenv's.
# The quick tests need no more than test.txt, in CI too.
test-python-%:
	@for python in $(BIN)/python python$* $$(ls -dr ~/.pyenv/versions/$*.*/bin/python$* 2>/dev/null); do \
	  found=$$("$$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null); \
	  if [ "$$found" = $* ]; then \
	    echo "Python $*:"; \
	    [ "$$python" = $(BIN)/python ] && environment=$(VENV) || environment=$(VENV)-$*; \
	    exec $(MAKE) --no-print-directory test-quick PYTHON="$$python" VENV="$$environment" \
	      GATEWAY_TEST_ALL= $(if $(JUNIT),JUNIT=$(JUNIT)/$*); \
	  fi; \
	done; \
	echo "Python $*: not tested, because this machine has no python$*"

lint: $(CHECK_READY) ## check the style: ruff
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(CHECK_READY) ## check the types: mypy, strict
	@$(BIN)/mypy

check: lint types test ## lint, types and tests

bench: $(TEST_READY) ## print the figures beside a C floor measured in the same run
	@$(BIN)/python -m bench $(ARGS)

attack: $(TEST_READY) ## do to a node what one anonymous client can do, and say whether it held
	@$(BIN)/python -m tests.attack $(ARGS)

compose-test: $(TEST_READY) ## bring the shipped docker-compose.yml up, use it, break it, take it down
	@$(BIN)/python -m pytest $(call report,containers) deploy/compose_test.py $(ARGS)

# `make lock UPGRADE=` changes only what pyproject.toml demands.
UPGRADE ?= --upgrade
COMPILE := $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--annotation-style line --custom-compile-command 'make lock'
# The smaller sets take their versions from the largest.
SUBSET := $(COMPILE) --constraints requirements/check.txt
TESTING := --all-extras --group test --group bench --group build

lock: $(UV) ## write requirements/ again: the newest versions that pyproject.toml allows
	@$(COMPILE) $(UPGRADE) pyproject.toml $(TESTING) --group lint --group kubernetes -o requirements/check.txt
	@$(SUBSET) pyproject.toml $(TESTING) -o requirements/test.txt
	@$(SUBSET) pyproject.toml --extra embedded --group build -o requirements/run.txt
	@$(SUBSET) pyproject.toml --extra jwt -o requirements/serve.txt
	@$(SUBSET) --group build -o requirements/build.txt

$(UV):
	@$(PYTHON) -m venv $(VENV)/uv
	@$(VENV)/uv/bin/python -m pip --disable-pip-version-check install --quiet 'uv>=0.8'

clean: ## remove what the other commands made
	rm -rf $(VENV) $(PYTHONS:%=$(VENV)-%) .bench build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

# pip installs the versions and the contents that requirements/ names, and nothing else.
$(VENV)/.%-ready: requirements/%.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "webflow-gateway needs Python 3.11 or later, and $(PYTHON) is $$($(PYTHON) -V 2>&1). Try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || \
	  { echo "No virtual environment could be made; on Debian: apt-get install python3-venv"; exit 1; }
	@echo "Installing packages into $(VENV) (once, about $(SIZE_$*)):"
	@set -o pipefail; $(PIP) install --require-hashes -r $< | \
	  awk '/^Collecting/ {print "  " $$2; fflush()} /^Installing/ {print "Unpacking them ..."; fflush()}'
	@$(PIP) install --quiet --no-deps --no-build-isolation -e .
	@touch $(HOLDS_$*:%=$(VENV)/.%-ready)
