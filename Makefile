.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
READY := $(VENV)/.ready
WORKERS := -n 3 --dist worksteal # on two cores: a test that waits for a process leaves its core idle
LENGTHS ?= KILLS=100 STARTS=48 STOPS=300 FUZZ=10000 SETTINGS=2000

help: ## list the targets
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /make \1\t/' | expand -t 14

setup: $(READY) ## create .venv and install the package with its development tools (about two minutes, 6 GB)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

train: setup ## train and test a network; make train ARGS="model=mlp optimizer=sgd" passes words on
	$(VENV)/bin/python train.py $(ARGS)

test: setup ## run the tests; make test ARGS="-k pictures" passes words on
	$(VENV)/bin/python -m pytest $(WORKERS) $(ARGS)

trust: setup ## try every promise of the README at full length (half an hour)
	$(LENGTHS) $(VENV)/bin/python -m pytest $(WORKERS) -m "promise or long" --hypothesis-seed=0 $(ARGS)

check: setup ## lint, check formatting, types, the order of imports and the workflow
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(VENV)/bin/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/ci.yml

clean: ## remove the environment and the caches; runs and data stay
	rm -rf $(VENV) *.egg-info .*_cache

.PHONY: help setup train test trust check clean
