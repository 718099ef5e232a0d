# make demo: install into .venv, train a classifier on a real data set, write its report.
# make test: install what the tests need, then lint, types and tests.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
LOCK := .ci/requirements.txt

.PHONY: demo test lint types tests bench docs pictures test-lowest lock clean

demo: $(VENV)/installed
	$(BIN)/gpumlp train demo

test: lint types tests

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed
	$(BIN)/mypy

tests: $(VENV)/installed
	$(BIN)/python -m pytest -n auto

bench: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check 'pytest-benchmark>=5.0'
	$(BIN)/python -m pytest bench --benchmark-only

# The API, a page for each module, from the docstrings.
docs: $(VENV)/installed
	$(BIN)/python docs/build.py build/docs

# The pictures of the README and the tutorial, trained anew; those of MNIST take its files from GPUMLP_DATA or OpenML.
pictures: $(VENV)/installed
	$(BIN)/python docs/pictures.py

# The environment is made anew from the lock file whenever that or pyproject.toml changes.
$(VENV)/installed: $(LOCK) pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("gpumlp needs Python 3.11 or newer, and $(PYTHON) is " + sys.version.split()[0] + "; name another one: make PYTHON=python3.12") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r $(LOCK)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

# The tests on the oldest versions that pyproject.toml admits, in an environment of their own.
test-lowest:
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/pip install --quiet --disable-pip-version-check uv
	.venv-lowest/bin/uv pip compile --quiet --universal --no-header --no-annotate --resolution lowest-direct \
	  --group test pyproject.toml --output-file .venv-lowest/lowest.txt
	.venv-lowest/bin/uv pip install --quiet --python .venv-lowest/bin/python -r .venv-lowest/lowest.txt
	.venv-lowest/bin/uv pip install --quiet --python .venv-lowest/bin/python --no-deps --editable .
	.venv-lowest/bin/python -m pytest -n auto

# Resolve the development environment again.
lock:
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install --quiet --disable-pip-version-check uv
	.venv-lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-header --group test pyproject.toml --output-file $(LOCK)

clean:
	rm -rf .venv .venv-lowest .venv-lock build dist *.egg-info
