# Everything a newcomer needs is two commands: `make run` and `make test`.
# Each makes the virtual environment first if it is not there or is older than pyproject.toml.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help run test lint types check bench compose-test clean

help: ## list the commands
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(READY) ## start one node with an embedded Valkey and the demo page; Ctrl-C stops it
	@exec $(BIN)/webflow-gateway dev $(ARGS)

test: $(READY) ## run all tests (ARGS='-k name' narrows it)
	@$(BIN)/python -m pytest $(ARGS)

lint: $(READY) ## style: ruff
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(READY) ## types: mypy, strict
	@$(BIN)/mypy

check: lint types test ## lint, types and tests

bench: $(READY) ## print the figures beside a C floor measured in the same run
	@$(BIN)/python -m bench $(ARGS)

compose-test: $(READY) ## bring the shipped docker-compose.yml up, use it, break it, take it down
	@$(BIN)/python -m pytest deploy/compose_test.py $(ARGS)

clean: ## remove what the other commands made
	rm -rf $(VENV) .bench build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "webflow-gateway needs Python 3.11 or later, and $(PYTHON) is $$($(PYTHON) -V 2>&1). Try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { echo "No virtual environment could be made; on Debian: apt-get install python3-venv"; exit 1; }
	@echo "Installing into $(VENV) (once) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[embedded,otel]' --group test --group lint --group bench
	@touch $@
