# Everything a person or a pipeline does with this repository. `make` lists it.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.ONESHELL:
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOCALCLUSTER := PYTHONPATH=hack/localcluster $(PYTHON) -m localcluster

export PYTHONDONTWRITEBYTECODE := 1

##@ Main
.PHONY: help demo test
help: ## List the targets.
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z0-9-]+:.*## / {printf "  %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.ready ## The main job from nothing: a cluster, the operator, the sample application, a report.
	PYTHONPATH=hack:hack/localcluster $(BIN)/python -m demo

test: $(VENV)/.ready programs verify lint type ## All checks and tests, with coverage; installs what they need.
	$(BIN)/python -m pytest tests --ignore=tests/benchmarks --ignore=tests/e2e --numprocesses auto --dist loadfile --durations 20 --cov --cov-report=term
	$(BIN)/python -m pytest tests/e2e

##@ Develop
.PHONY: venv programs lock fmt lint type verify crds test-unit test-integration test-cluster test-e2e bench-operator clean
programs: ## PostgreSQL, Redis and the programs of Kubernetes that the tests start.
	PYTHONPATH=hack/localcluster $(PYTHON) hack/prepare-tests

venv: $(VENV)/.ready ## The Python environment, with locked versions.
$(VENV)/.ready: pyproject.toml hack/requirements/development.txt hack/create-venv
	hack/create-venv $(PYTHON) $(VENV)
	touch $@

lock: venv ## Choose and lock the newest versions that pyproject.toml allows.
	export UV_CUSTOM_COMPILE_COMMAND="make lock"
	compile="$(BIN)/uv pip compile --quiet --upgrade --python-version 3.11 --no-annotate"
	$$compile pyproject.toml --extra operator --extra migrations -o hack/requirements/operator.txt
	$$compile pyproject.toml --extra operator --extra migrations --extra metrics --extra dev \
	  -c hack/requirements/operator.txt -o hack/requirements/development.txt
	$$compile pyproject.toml --extra benchmarks -c hack/requirements/development.txt -o hack/requirements/benchmarks.txt
	$$compile examples/birthday-app/pyproject.toml --no-emit-package shipkeeper -c hack/requirements/development.txt \
	  -o examples/birthday-app/requirements.txt

fmt: venv ## Format the code.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: venv ## Style, and who may import whom.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

type: venv ## Static types, strict.
	$(BIN)/mypy

crds: venv ## Generate crds/ and docs/reference/ from the models.
	$(BIN)/python -m shipkeeper.resources.crd write
	hack/sync-chart write

verify: venv ## Fail where a generated file is stale.
	$(BIN)/python -m shipkeeper.resources.crd check
	hack/sync-chart check

test-unit: venv ## Tests without any server.
	$(BIN)/python -m pytest tests/unit

test-integration: venv programs ## Tests with a real Redis and a real PostgreSQL.
	$(BIN)/python -m pytest tests/integration

test-cluster: venv programs ## Tests with a real API server.
	$(BIN)/python -m pytest tests/cluster

test-e2e: venv programs ## Tests with a real kubelet and the operator's pods.
	$(BIN)/python -m pytest tests/e2e

bench-operator: venv programs ## Writes, memory and speed of the operator at 1,000 AppDeployments.
	$(BIN)/python tests/benchmarks/operator_scale.py

.PHONY: bench-limits
bench-limits: $(VENV)/.benchmarks ## Cost of a decision beside a bare INCR and other limiters: a table and a picture.
	command -v redis-server >/dev/null || PYTHONPATH=hack/localcluster $(PYTHON) -c \
	  'from localcluster import debian; debian.ensure(["redis-server"])'
	$(BIN)/python tests/benchmarks/limits_speed.py --picture docs/images/limits-speed.svg

.PHONY: bench-migrations
bench-migrations: $(VENV)/.benchmarks programs ## Speed of a consolidation beside one INSERT ... SELECT, its verification, a worker's memory.
	$(BIN)/python tests/benchmarks/migration_speed.py --picture docs/images/migrations-speed.svg

$(VENV)/.benchmarks: $(VENV)/.ready hack/requirements/benchmarks.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -r hack/requirements/benchmarks.txt
	touch $@

##@ Cluster
.PHONY: cluster cluster-down cluster-status image
cluster: ## A real cluster on this machine: CLUSTER=kind (with a Docker engine) or CLUSTER=local.
	$(LOCALCLUSTER) up

cluster-down: ## Remove the cluster and all that it left on this machine.
	$(LOCALCLUSTER) down

cluster-status: ## What of the cluster runs.
	$(LOCALCLUSTER) status

clean: ## Remove what the targets made in this folder.
	rm -rf $(VENV) .coverage* .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache dist htmlcov
