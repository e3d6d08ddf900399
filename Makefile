# make demo   captions regions of a photograph: sets everything up, prints a table, writes demo.png
# make test   the whole test suite
# make lint   ruff and mypy
#
# Everything is installed into $(VENV), which is made when it is not there. To take packages from somewhere else than pip's
# default (a mirror, a build of PyTorch without CUDA), say so to pip: make demo PIP_ARGS="--index-url ...".

PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
PYTEST_ARGS ?= -n 2

BIN := $(VENV)/bin
PIP_INSTALL = $(BIN)/python -m pip --disable-pip-version-check install --quiet $(PIP_ARGS) --constraint constraints.txt

.PHONY: help demo test lint clean

help:
	@sed -n '1,3s/^# //p' Makefile

demo: $(VENV)/.installed-demo
	$(BIN)/hf-segcap demo

test: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis demo.png

# PyTorch goes first and alone: with it in place the other packages' open-ended requirements on torch change nothing.
$(VENV)/.installed-torch: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "hf_segcap needs Python 3.11 or newer; '$(PYTHON)' is not. Name another one: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) torch
	@touch $@

$(VENV)/.installed-%: $(VENV)/.installed-torch pyproject.toml setup.py
	$(PIP_INSTALL) --editable '.[$*]'
	@touch $@
