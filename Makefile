# The house's commands. `make demo` and `make test` are the two to remember; both install what they need first.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SUITE ?= foundation

# The first interpreter here that is new enough and can make a virtual environment; PYTHON=... chooses another.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

.PHONY: help install demo test lint docs bench clean
.DEFAULT_GOAL := help

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## make .venv with the versions of constraints.txt

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Habilis needs Python 3.11 or newer with its venv module: make install PYTHON=/path/to/python3"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt pip
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --build-constraint constraints.txt \
		--editable '.[deploy,video,envpool]' --group dev
	@touch $@

demo: $(STAMP) ## teach a quadruped to walk; report, video and ONNX file at the end
	$(BIN)/habilis demo

test: lint ## lint, types, architecture and every test
	$(BIN)/python -m pytest -n 2

lint: $(STAMP) ## style, types and import floors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

docs: $(STAMP) ## build the documentation into site/, refusing broken links
	$(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html"

bench: $(STAMP) ## measure a suite of algorithms and environments over several seeds (SUITE=name)
	$(BIN)/habilis bench $(SUITE)

clean: ## remove what the commands above have made, but for .venv and runs/
	rm -rf site build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
