PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-fast test-ray-versions test-gpu lint format benchmark install clean

demo: install
	$(BIN)/locray demo --output demo

# What doesn't start Ray has a process for each core; Ray wants them all.
test: install
	$(BIN)/python -m pytest -m "not ray" -n auto --dist worksteal
	$(BIN)/python -m pytest -m ray

test-fast: install
	$(BIN)/python -m pytest -n auto --dist worksteal

# Labels, trains and runs the poison tests on the oldest and the newest Ray of pyproject.toml, each in an environment of
# its own. Others: make test-ray-versions RAY_VERSIONS="2.57 2.58"
RAY_VERSIONS ?= 2.56 2.60
RAY_TESTS := tests/ray_runtime tests/labelling/test_gpus.py tests/labelling/test_poison.py \
	tests/labelling/test_run.py::test_a_folder_becomes_a_table_and_the_next_night_only_what_changed \
	tests/training/test_run.py::test_the_artifact_has_the_metrics_of_its_best_epoch \
	tests/training/test_run.py::test_ray_prints_nothing

test-ray-versions: $(addprefix test-ray-,$(RAY_VERSIONS))

test-ray-%:
	test -x $(VENV)-ray-$*/bin/python || $(PYTHON) -m venv $(VENV)-ray-$*
	grep -v '^ray==' constraints.txt > $(VENV)-ray-$*/constraints.txt
	$(VENV)-ray-$*/bin/python -m pip install --quiet -c $(VENV)-ray-$*/constraints.txt 'ray[data,default,train]==$*.*' -e '.[dev]'
	$(VENV)-ray-$*/bin/python -m pytest -n 0 -m "" $(RAY_TESTS)

# On a machine with a CUDA device, in under ten minutes: the tests that need one, a GPU and its processors compared, and
# the speed of both. Writes gpu-check.md.
test-gpu: install
	$(BIN)/python -m tests.gpu_check --output gpu-check.md

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
	rm -rf $(VENV)-ray-* demo build *.egg-info .mypy_cache .ruff_cache .pytest_cache
