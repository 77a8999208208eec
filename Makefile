# Everything runs in .venv, which is made on first use and brought up to date when pyproject.toml or
# constraints.txt changes. Another interpreter: `make PYTHON=python3.12 ...`.

VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3.11)
OUT ?= runs/demo
COMBINATION ?=
PYTEST_ARGS ?=
RUN := $(VENV)/bin/python
ENVIRONMENT := pyproject.toml constraints.txt

# The tensors here are small: a second torch thread gains nothing measurable, and beside another process on the same two
# cores (or a second test worker) the threads wait for each other: steps of the demo took up to thirty times as long.
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help demo test quick lint format types check docs examples site generated packages venv clean

help: ## Show this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r name what; do \
		printf '  make %-9s %s\n' "$$name" "$$what"; done

demo: $(VENV)/.with-models ## Train two models on real digits with several estimators: one table, one picture in runs/demo
	$(RUN) -m models demo --out $(OUT)

test: $(VENV)/.with-test ## Run all tests, doctests and the tutorial (more arguments: PYTEST_ARGS="-k nvil")
	@MPLBACKEND=Agg $(RUN) -m pytest -n 2 --dist worksteal $(PYTEST_ARGS)

quick: $(VENV)/.with-test ## Run some tests of every floor, those that tests/quick.txt lists, in under two minutes
	@MPLBACKEND=Agg $(RUN) -m pytest -n 2 --dist worksteal -q @tests/quick.txt $(PYTEST_ARGS)

lint: $(VENV)/.with-dev ## Check style and formatting
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: $(VENV)/.with-dev ## Mend what `make lint` finds, where that can be done by itself
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

types: $(VENV)/.with-dev ## Check types
	$(VENV)/bin/pyright --pythonpath $(RUN)

check: lint types site test ## All of the above that only looks: what CI runs

docs: examples site ## Run the examples of pages and docstrings, and build the site from what is stored

examples: $(VENV)/.with-docs
	@MPLBACKEND=Agg $(RUN) -m pytest -n 2 -q tests/docs/test_site.py tests/docs/test_pages.py pyro_discrete

# By itself where all tests are run, the examples among them.
site: $(VENV)/.with-docs
	$(RUN) -m sphinx -b html -q -W --keep-going -c docs -d docs/_build/doctrees . docs/_build/html
	@echo 'open docs/_build/html/index.html'

generated: $(VENV)/.with-dev ## Renew what is generated: README's table, what `list` shows, CONTRIBUTING's route, tutorials' outputs, pictures
	$(RUN) tests/docs/test_readme.py
	$(RUN) tests/docs/test_choices.py
	$(RUN) tests/docs/test_contributing_route.py
	$(RUN) tests/docs/test_tutorials.py
	$(RUN) docs/pictures.py swap
	$(RUN) docs/pictures.py plan
	$(RUN) docs/pictures.py states
	$(RUN) docs/pictures.py gallery

packages: $(VENV)/.with-release ## Build wheel and source archive, install and try the wheel alone: Python 3.11 oldest, 3.12 pinned, 3.13 newest
	$(RUN) tests/packages.py $(COMBINATION)

venv: $(VENV)/.with-dev ## Make the environment for development, and nothing else

clean: ## Remove the environment and caches (not runs/)
	rm -rf $(VENV) .pytest_cache .ruff_cache build dist docs/_build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The extras nest (models < test < docs < dev): a larger one stands for the smaller.
provides_models := models
provides_test := models test
provides_docs := models test docs
provides_dev := models test docs dev
provides_release := release

$(VENV)/.with-%: $(ENVIRONMENT)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'pyro_discrete needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 ...' >&2; exit 1; }
	@$(RUN) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$*]'
	@touch $(addprefix $(VENV)/.with-,$(provides_$*))
