PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-fast lint format benchmark install clean

demo: install
	$(BIN)/locray demo --output demo

# What doesn't start Ray has a process for each core; Ray wants them all.
test: install
	$(BIN)/python -m pytest -m "not ray" -n auto --dist worksteal
	$(BIN)/python -m pytest -m ray

test-fast: install
	$(BIN)/python -m pytest -n auto --dist worksteal

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# With photographs of your own: make benchmark IMAGES=folder MODEL=folder DAFT=folder
benchmark: install
	$(BIN)/python -m benchmarks labelling --output benchmark.md $(if $(IMAGES),--images $(IMAGES)) $(if $(MODEL),--model $(MODEL)) $(if $(DAFT),--daft $(DAFT))

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "locray needs Python 3.11 or newer; found $$($(PYTHON) --version). Say which with: make PYTHON=python3.12" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "Python's venv module is missing; on Debian: apt-get install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf demo build *.egg-info .mypy_cache .ruff_cache .pytest_cache
