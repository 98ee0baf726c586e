# Two commands do all the set-up on a fresh machine: `make quickstart` and `make test`. Both make $(VENV) themselves.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements/constraints.txt
# Two test processes with one thread each suit a laptop; raise JOBS on a larger machine.
JOBS ?= 2

.PHONY: quickstart test test-oldest test-newest robustness lint docs clean

quickstart: $(VENV)/.train
	$(BIN)/python examples/quickstart.py

test: $(VENV)/.dev lint docs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadgroup -q

# The whole library with the oldest versions that it works with, and with whatever pip takes today. Each makes a virtual
# environment of its own and downloads several GB where pip takes a CUDA build of PyTorch; neither is part of `test`.
test-oldest:
	$(PYTHON) -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/python -m pip install --quiet --disable-pip-version-check -c requirements/oldest.txt -e ".[dev]"
	OMP_NUM_THREADS=1 $(VENV)-oldest/bin/python -m pytest -n $(JOBS) --dist loadgroup -q

test-newest:
	$(PYTHON) -m venv $(VENV)-newest
	$(VENV)-newest/bin/python -m pip install --quiet --disable-pip-version-check --upgrade -e ".[dev]"
	OMP_NUM_THREADS=1 $(VENV)-newest/bin/python -m pytest -n $(JOBS) --dist loadgroup -q

# Every kill, damaged file, full disk and race of tests/robustness, of which `make test` draws a few: two hours on one core.
robustness: $(VENV)/.dev
	SAMPARSER_ROBUSTNESS=long OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --timeout 0 tests/robustness

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) site build dist *.egg-info

$(VENV)/.train: pyproject.toml requirements/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e ".[train]"
	touch $@

$(VENV)/.dev: pyproject.toml requirements/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e ".[dev]"
	touch $@ $(VENV)/.train
