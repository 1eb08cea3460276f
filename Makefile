# `make demo` and `make test` set up all they need in .venv and run; quick the second time.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-slow test-oldest timm-tests fuzz wheel docs docs-serve lint clean browser gpu-wheels
.DEFAULT_GOAL := help

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "ecanet needs Python 3.10 or newer: make PYTHON=python3.12 ..."; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@# Trainers of others name the build of OpenCV that needs libGL: without that, the headless one takes its place.
	$(BIN)/python -c 'import cv2' 2>/dev/null \
		|| $(BIN)/python -m pip install --quiet --force-reinstall --no-deps opencv-python-headless
	touch $@

demo: $(INSTALLED)  ## compare none, se and eca on the digits until there is an answer, and make the report
	$(BIN)/ecanet compare --recipe smoke/digits --out demo

test: $(INSTALLED) browser lint  ## lint, type-check and run the tests, minutes
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal -m "not slow"

test-slow: $(INSTALLED)  ## the tests that kill, interrupt, attack, distribute and train: several times as long
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal -m slow

OLDEST := .venv-oldest/bin/python
# The interpreter of that torch's Triton fails with numpy 2.4.
test-oldest:  ## the tests of attention and its fused path on the oldest torch supported, in a venv of its own
	test -x $(OLDEST) || $(PYTHON) -m venv .venv-oldest
	$(OLDEST) -m pip install --quiet 'torch==2.10.*' 'torchvision==0.25.*' 'numpy<2.4' --editable . \
		hypothesis pytest pytest-timeout pytest-xdist
	$(OLDEST) -m pytest --numprocesses 2 --dist worksteal tests/attention tests/models/test_residual.py \
		tests/models/test_script_and_fx.py

# Minutes on one core, and a download of timm's sources.
timm-tests: $(INSTALLED)  ## timm's own tests of models, on ours
	$(BIN)/python benchmarks/timm_tests.py

wheel: $(INSTALLED)  ## build the wheel and the source package, and try the wheel in a new environment
	@sh tests/try_wheel.sh $(BIN)

FILES ?= 20000
fuzz: $(INSTALLED)  ## give 20,000 broken files to the commands; what fails is kept in fuzz/failures
	$(BIN)/python tests/fuzzing.py --files $(FILES) --out fuzz

# HAVE: a file with the packages that are there, as `pip list --format freeze` prints them.
GPU_PYTHON ?= 3.12
GPU_PLATFORMS ?= manylinux_2_28 manylinux_2_27 manylinux_2_17 manylinux2014
gpu-wheels: $(INSTALLED)  ## download what ecanet needs on a GPU machine with torch alone, or beside HAVE
	mkdir -p build
	$(BIN)/python benchmarks/gpu_wheels.py --compiled $(if $(HAVE),--have $(HAVE)) >build/gpu-wheels.txt
	$(BIN)/python -m pip download --no-deps --only-binary=:all: --implementation cp \
		--python-version $(GPU_PYTHON) $(GPU_PLATFORMS:%=--platform %_x86_64) \
		--requirement build/gpu-wheels.txt --dest build/gpu-wheels

docs: $(INSTALLED)  ## build the site in build/site; a broken link or anchor fails
	$(BIN)/python docs/build.py

docs-serve: $(INSTALLED)  ## serve the site at http://localhost:8000
	$(BIN)/python docs/build.py --serve

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The report's tests open it in Chromium; without one they skip and say so.
browser: $(INSTALLED)
	@sh tests/install_browser.sh

clean:  ## remove what the targets above made
	rm -rf $(VENV) .venv-oldest demo fuzz build/gpu-wheels build/gpu-wheels.txt
