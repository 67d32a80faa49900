# SPDX-License-Identifier: Apache-2.0
# The two commands of the README. Each makes .venv if there is none and installs what it needs.
#
#   make demo    a small Wan pipeline folder -> ONNX -> TensorRT-RTX engine bundle, verified, on any machine;
#                FAMILY=hunyuan-video takes a small HunyuanVideo instead
#   make test    linters, types, the order of the rooms, and every test that this machine can run
#
# VORTA_CUDA_ARCHITECTURES chooses the GPU architectures that the plugin is compiled for; see plugins/README.md.

PYTHON ?= python3
VENV ?= .venv
FAMILY ?= wan
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# Whatever the wheel is made of: a change installs it again, and ninja compiles what has changed.
SOURCES := pyproject.toml constraints.txt CMakeLists.txt cli.py \
	$(shell find plugins model export engines runtime benchmarks commands -type f ! -name '*.so' ! -path 'benchmarks/results/*' ! -path '*/__pycache__/*')
# The build requirements of pyproject.toml, installed once: isolated builds would compile everything anew each time.
BUILD_REQUIREMENTS := $(shell sed -n '/^requires = \[/,/^]/s/^ *\("[^"]*"\),*$$/\1/p' pyproject.toml)
# tensorrt-rtx is a source package, which setuptools turns into a wheel: without isolation it needs both at hand.
BUILD_REQUIREMENTS += setuptools wheel
INSTALL := PATH="$(abspath $(BIN)):$$PATH" $(PIP) install --constraint constraints.txt --no-build-isolation

.PHONY: demo test lint types check-python clean

demo: $(VENV)/.installed
	$(BIN)/vorta-trt demo --family $(FAMILY) --output demo

test: lint
	$(BIN)/python -m pytest

lint: types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $$(find plugins tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

types: $(VENV)/.installed-test
	$(BIN)/mypy
	$(BIN)/lint-imports

check-python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "vorta-trt needs Python 3.10 or newer, but $(PYTHON) is $$($(PYTHON) --version 2>&1);" \
	         "run: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 2; }

$(VENV)/.build-requirements: pyproject.toml constraints.txt | check-python
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --constraint constraints.txt $(BUILD_REQUIREMENTS)
	@touch $@

$(VENV)/.installed: $(SOURCES) $(VENV)/.build-requirements
	$(INSTALL) '.[rtx,video,plot]'
	@touch $@

$(VENV)/.installed-test: $(SOURCES) $(VENV)/.build-requirements
	$(INSTALL) '.[test]'
	@touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) build demo
