# Two commands matter: `make demo` and `make test`. Both make .venv and install what they need; Python 3.11 or newer is
# all they expect. `make help` lists the rest.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
LOWEST := .venv-lowest
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
SOURCES := pyproject.toml constraints.txt
# Threads that wait for each other spin, and slow a busy machine down tenfold: unless you say otherwise they do not.
export OMP_WAIT_POLICY ?= PASSIVE
# One thread for each of two workers.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
# For few tests that take long: each goes to the worker that is free.
ONE_BY_ONE := -n 2 --dist=load --maxschedchunk=1
OFFLINE := not browser and not notebooks and not gpu

.PHONY: help demo test test-fast test-long test-lowest lint lab notebooks exercises wheel class wheelhouse \
	test-notebooks test-browser site test-site bench clean

help: ## Show this list.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "ntps needs Python 3.11 or newer; name one: make PYTHON=python3.12 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: $(SOURCES) | $(VENV)/bin/python
	@echo "Installing ntps and what it needs (once; a few minutes) ..."
	$(INSTALL) --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.core
	$(INSTALL) --editable '.[notebooks,test]'
	@touch $@

$(VENV)/.dev: $(VENV)/.test
	$(INSTALL) --editable '.[browser,dev,notebooks,test]'
	@touch $@

demo: $(VENV)/.core ## Score the bundled model on the bundled tasks; writes report/.
	$(BIN)/ntps demo --output report

test: $(VENV)/.test ## Run the tests that need no network, GPU or browser, without those of test-long.
	$(PYTEST) -n 2 --dist=worksteal --ignore=tests/browser -m "$(OFFLINE) and not long"

test-long: $(VENV)/.test ## The rest: simulations, kills, several processes, every architecture, bundled weights.
	$(PYTEST) $(ONE_BY_ONE) --ignore=tests/browser -m "$(OFFLINE) and long"

test-fast: $(VENV)/.test ## What `make test` runs, without the slow tests, for while you work.
	$(PYTEST) -n 2 --ignore=tests/browser --ignore=tests/notebooks/test_notebooks.py \
		-m "$(OFFLINE) and not slow and not long"

$(LOWEST)/.test: pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints-lowest.txt \
		--editable . pytest hypothesis pytest-xdist pyyaml
	@touch $@

test-lowest: $(LOWEST)/.test ## The fast tests with the lowest versions of what is needed.
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -n 2 -m "$(OFFLINE) and not slow and not long" \
		tests/core tests/models tests/tasks tests/scoring tests/study tests/report tests/cli tests/finetune

lint: $(VENV)/.dev ## Style, docstrings, types and the order of imports.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The root is the repository: only from there does jupytext find its settings, and a saved .ipynb reaches its .py.
lab: $(VENV)/.test ## Open the course in JupyterLab.
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/jupyter lab --ServerApp.root_dir=. \
		--LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb

notebooks: $(VENV)/.test ## Badges, exercises, then execute every pair from its .py, keep the outputs and check.
	$(BIN)/python -m tools.notebooks all

exercises: $(VENV)/.test ## Write the exercise notebooks from their solutions.
	$(BIN)/python -m tools.notebooks exercises

wheel: $(VENV)/.core
	rm -rf build/wheel
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir build/wheel .

class: $(VENV)/.test wheel ## What a class is given, without solutions: build/class/course.zip; nbgrader's folder for you.
	$(BIN)/python -m tools.handout build/class --wheel build/wheel/*.whl

wheelhouse: wheel ## What a room without network installs, for this system and Python: build/wheelhouse/; says its size.
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --constraint constraints.txt \
		--dest build/wheelhouse "$$(echo build/wheel/*.whl)[notebooks]"
	@du -sh build/wheelhouse

test-notebooks: $(VENV)/.test ## Execute every solution from its .py, within its limits of time and memory.
	$(PYTEST) $(ONE_BY_ONE) -m notebooks tests/notebooks

test-browser: $(VENV)/.dev ## Run every lesson and use its panels in a real browser (Debian: apt-get install chromium).
	$(PYTEST) $(ONE_BY_ONE) -m browser tests/browser/test_browser.py

$(VENV)/.site: $(VENV)/.dev
	$(INSTALL) --editable '.[browser,dev,notebooks,site,test]'
	@touch $@

site: $(VENV)/.site ## Build the site into build/site: lessons with panels, reference, results; any file server shows it.
	rm -rf build/static build/site
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet -c docs . build/site

test-site: site ## Use every page of the site in a real browser (Debian: apt-get install chromium).
	$(PYTEST) -m browser tests/browser/test_site.py

bench: $(VENV)/.test ## Measure the ratios of docs/results.md; writes benchmarks/results/latest.json.
	$(BIN)/python -m benchmarks

clean: ## Remove what the targets made.
	rm -rf $(VENV) $(LOWEST) build report artifacts .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
