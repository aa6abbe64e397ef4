# Every target sets up what it needs: a fresh machine needs Python >= 3.10 and make, nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow check dist pythons clean

# The two stamps are the two installations: what users run, and what developers add to it.
$(VENV)/.core: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.dev: $(VENV)/.core
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,deep,dicom,export,nifti,openvino,ray,remote,report,serve,track,video]'
	touch $@

demo: $(VENV)/.core
	$(BIN)/anomalyclip demo --output demo

# COVERAGE=1 also measures coverage, which takes half as long again; CI does.
test: $(VENV)/.dev
	$(BIN)/python -m pytest -n auto $(if $(COVERAGE),--cov --cov-report=term)

# What takes minutes and changes rarely: exports of every golden case, compilation.
test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -n auto -m slow --no-cov

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python release/audit.py

# Wheel, sdist and bill of materials, tried in an empty environment.
dist:
	PYTHON=$(PYTHON) release/build.sh

# Every Python that is installed, from 3.10 on: without PyTorch, an exported file gives the same scores.
pythons: $(VENV)/.dev
	release/pythons.sh

clean:
	rm -rf $(VENV) demo dist .pytest_cache .mypy_cache .ruff_cache .coverage*
