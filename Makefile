# SPDX-License-Identifier: Apache-2.0
# The commands of the README. Each makes .venv if there is none and installs what it needs.
#
#   make demo    a small Wan pipeline folder -> ONNX -> TensorRT-RTX engine bundle, verified, on any machine;
#                FAMILY=hunyuan-video takes a small HunyuanVideo instead
#   make test    linters, types, the order of the rooms, and every test that this machine can run
#   make wheel   dist/*.whl with code for every GPU, which installs without a compiler; takes a while
#
# VORTA_CUDA_ARCHITECTURES chooses the GPU architectures that demo and test compile for; see plugins/README.md.

PYTHON ?= python3
VENV ?= .venv
FAMILY ?= wan
WHEEL_ARCHITECTURES ?= release
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# Whatever the wheel is made of: a change installs it again, and ninja compiles what has changed.
SOURCES := pyproject.toml constraints.txt CMakeLists.txt $(wildcard *.py) \
	$(shell find plugins model export engines runtime serving benchmarks commands -type f ! -name '*.so' ! -path 'benchmarks/results/*' ! -path '*/__pycache__/*')
# The build requirements of pyproject.toml, installed once: isolated builds would compile everything anew each time.
BUILD_REQUIREMENTS := $(shell sed -n '/^requires = \[/,/^]/s/^ *\("[^"]*"\),*$$/\1/p' pyproject.toml)
# tensorrt-rtx is a source package, which setuptools turns into a wheel: without isolation it needs both at hand.
BUILD_REQUIREMENTS += setuptools wheel
INSTALL := PATH="$(abspath $(BIN)):$$PATH" $(PIP) install --constraint constraints.txt --no-build-isolation
# What some lists of pyproject.toml ask for; it is installed while the wheel is compiled.
requirements = $(shell sed -n $(foreach name,$(1),-e '/^$(name) = /p' -e '/^$(name) = \[$$/,/^]/p') pyproject.toml \
	| grep -o '"[^"]*"' | grep -v vorta-trt | sort -u)
RUN_REQUIREMENTS := $(call requirements,dependencies rtx video plot)
TEST_REQUIREMENTS := $(call requirements,dependencies rtx video plot polygraphy train serve ray tracing test)
site_packages = $$($(1)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")
# Two steps at a time: compiling beside installing, types beside tests.
TOGETHER := $(MAKE) --no-print-directory --jobs 2
# GPU tests run in a process of their own, since the card is one; without a GPU they are skipped among the others.
GPU := $(shell command -v nvidia-smi)

.PHONY: demo test wheel lint types pytest check-python clean FORCE

demo:
	@$(TOGETHER) $(VENV)/.installed
	$(BIN)/vorta-trt demo --family $(FAMILY) --output demo

test:
	@$(TOGETHER) lint types pytest

# Code for the GPUs of a release, the plugin interfaces of all versions of TensorRT, and a tag that says how old a Linux
# may be: that of this machine's libraries. The check at the end fails if a kernel spills registers.
wheel: $(VENV)/.requirements-wheel
	rm -rf build/wheel
	PATH="$(abspath $(BIN)):$$PATH" VORTA_CUDA_ARCHITECTURES="$(WHEEL_ARCHITECTURES)" VORTA_TENSORRT8=ON $(BIN)/python -m pip \
	  --disable-pip-version-check wheel --verbose --no-deps --no-build-isolation --config-settings build-dir=build/release \
	  --wheel-dir build/wheel .
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/auditwheel repair --exclude libtensorrt_rtx.so.1 \
	  --wheel-dir build/wheel/tagged build/wheel/*.whl
	$(BIN)/python studies/kernel_resources.py --brief build/wheel/tagged/*.whl
	mkdir -p dist && mv build/wheel/tagged/*.whl dist/ && ls -l dist

lint: $(VENV)/.requirements-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $$(find plugins tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

types: $(VENV)/.installed-test
	$(BIN)/mypy
	MYPYPATH=studies:studies/hopper $(BIN)/mypy studies/*.py studies/hopper/*.py
	$(BIN)/lint-imports

pytest: $(VENV)/.installed-test
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 8 --dist worksteal $(if $(GPU),-m "not gpu")
	$(if $(GPU),$(BIN)/python -m pytest -m gpu)

check-python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "vorta-trt needs Python 3.10 or newer, but $(PYTHON) is $$($(PYTHON) --version 2>&1);" \
	         "run: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 2; }

$(VENV)/.build-requirements: pyproject.toml constraints.txt | check-python
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --constraint constraints.txt $(BUILD_REQUIREMENTS)
	@touch $@

# Changes when another choice of what to compile is made.
$(VENV)/.choice: FORCE | $(VENV)/.build-requirements
	@echo '$(VORTA_CUDA_ARCHITECTURES) $(VORTA_TENSORRT8)' | cmp --silent - $@ || \
	  echo '$(VORTA_CUDA_ARCHITECTURES) $(VORTA_TENSORRT8)' > $@

$(VENV)/.wheel: $(SOURCES) $(VENV)/.build-requirements $(VENV)/.choice
	rm -rf $(VENV)/wheel
	PATH="$(abspath $(BIN)):$$PATH" $(PIP) wheel --no-deps --no-build-isolation --wheel-dir $(VENV)/wheel .
	@touch $@

$(VENV)/.requirements: pyproject.toml constraints.txt $(VENV)/.build-requirements
	$(INSTALL) $(RUN_REQUIREMENTS)
	@touch $@

$(VENV)/.requirements-test: pyproject.toml constraints.txt $(VENV)/.build-requirements
	$(INSTALL) $(TEST_REQUIREMENTS)
	# What TensorRT 10.13 offers to Python, as text. Its metadata asks for that TensorRT, which no test imports.
	# The metadata of Triton's server asks for NumPy 1, which its Python backend alone needs: an environment has that.
	$(PIP) install --no-deps --constraint constraints.txt tensorrt-stubs nvidia-pytriton tritonclient
	$(BIN)/python -m venv --without-pip --clear $(VENV)/triton
	$(PIP) install --no-deps --target $(call site_packages,$(VENV)/triton/bin) "numpy<2" "ml-dtypes<0.6"
	echo $(call site_packages,$(BIN)) > $(call site_packages,$(VENV)/triton/bin)/tests.pth
	@touch $@ $(VENV)/.requirements

$(VENV)/.requirements-wheel: pyproject.toml constraints.txt $(VENV)/.build-requirements
	$(PIP) install --constraint constraints.txt $(call requirements,release)
	@touch $@

$(VENV)/.installed: $(VENV)/.wheel $(VENV)/.requirements
	$(PIP) install --no-deps --force-reinstall $(VENV)/wheel/*.whl
	@touch $@

$(VENV)/.installed-test: $(VENV)/.wheel $(VENV)/.requirements-test
	$(PIP) install --no-deps --force-reinstall $(VENV)/wheel/*.whl
	@touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) build demo dist
