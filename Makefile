# The developer's commands; CI calls the same ones. `make` alone lists them.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
BIN := .venv/bin
# Two processes that each start a thread pool per core would fight over the cores.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

DATA ?= synthetic
DATA_PATH ?=
ARGS ?=

.PHONY: help setup demo test test-long lint clean

help:
	@echo "make setup       .venv with everything; instant when up to date. TORCH=cpu|cuda|skip chooses the torch build"
	@echo "make demo        prepare -> train -> evaluate -> export -> index -> serve on the synthetic world, and three answers"
	@echo "                 DATA=ml_1m DATA_PATH=<folder> on MovieLens-1M; ARGS='seed=1' for further overrides"
	@echo "make test        style, types and tests, in a few minutes; make test-long runs the long tests"
	@echo "make lint        style and types alone"
	@echo "make clean       removes caches and build leftovers; runs/ and .venv stay"

setup:
	@test -n "$(PYTHON)" || { echo "Towers needs Python 3.11 or newer, and none was found." >&2; \
		echo "Install one (Debian: apt-get install python3 python3-venv), or: make $@ PYTHON=/path/to/python3" >&2; exit 2; }
	@$(PYTHON) scripts/setup.py

demo: setup
	@$(BIN)/towers demo data=$(DATA) $(if $(DATA_PATH),'data.path="$(DATA_PATH)"') $(ARGS)

test: setup
	$(PYTEST) -n 2 $(ARGS)

test-long: setup
	$(PYTEST) -m long --timeout 1200 $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +
