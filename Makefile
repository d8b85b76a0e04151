# `make demo` and `make test` need only Python ≥ 3.11 and pip. The first call sets up .venv.
PYTHON ?= python3
TORCH ?= torch==2.14.1 torchvision==0.29.1
GPU_PYTHON ?= python3.12
GPU_STACK ?= torch==2.11.0 triton==3.6.0
VENV := .venv
RUN := $(VENV)/bin/python
# Run two tests at a time, with one thread per process.
PYTEST := OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n 2 --dist worksteal -p no:benchmark
SOURCES := $(shell find csrc -type f 2>/dev/null)

.PHONY: demo test quick lint bench docs gpu-check gpu-prepare test-gpu-stack sanitize clean

demo: $(VENV)/built
	rm -rf runs/demo
	$(VENV)/bin/u2pl train --amp --channels-last --out runs/demo
	$(VENV)/bin/u2pl evaluate --checkpoint runs/demo/best.pt --json runs/demo/evaluation.json
	$(RUN) -m u2pl_fast.data.export_shapes --count 4 --out runs/demo/images
	$(VENV)/bin/u2pl predict runs/demo/images --checkpoint runs/demo/best.pt --out runs/demo/predictions
	@echo "checkpoints, log and TensorBoard files: runs/demo; predictions: runs/demo/predictions/gallery.html"

# The Triton kernels need no GPU here: they are compiled ahead of time, and run in triton's interpreter, in a process of
# their own.
test: lint
	$(PYTEST) tests --ignore tests/interpret
	TRITON_INTERPRET=1 $(PYTEST) tests/interpret

# Run this while you work: it trains nothing, starts no process and compiles nothing.
quick: $(VENV)/built
	$(PYTEST) -m "not slow" tests --ignore tests/interpret

lint: $(VENV)/built
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/basedpyright --pythonpath $(RUN) --warnings

bench: $(VENV)/built
	$(RUN) -m benchmarks

# Build the pages as a site in site/, with an environment that does not contain the project.
docs: $(VENV)-docs/ready
	NO_MKDOCS_2_WARNING=1 $(VENV)-docs/bin/mkdocs build --strict --quiet

$(VENV)-docs/ready: pyproject.toml
	test -x $(VENV)-docs/bin/python || $(PYTHON) -m venv $(VENV)-docs
	$(PYTHON) -c "import tomllib; \
	    print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['docs'])" \
	    | xargs $(VENV)-docs/bin/python -m pip install -q
	touch $@

# Run on a machine with a GPU and torch; it downloads nothing. OUT: folder of results. CARRIED: DIR of gpu-prepare.
gpu-check:
	$(PYTHON) -m benchmarks.gpu_check --out $(or $(OUT),gpu-check) $(if $(CARRIED),--carried $(CARRIED))

# Run without a GPU: prepare DIR, which saves time on the GPU machine. GPU_PYTHON, GPU_STACK: its Python and versions.
# WHEELS: folder of wheels that it lacks. MSRC, WEIGHTS: MSRC-21 and a timm .safetensors file, to train there too.
gpu-prepare:
	@test -x $(VENV)-gpu/bin/python || $(GPU_PYTHON) -m venv $(VENV)-gpu || \
	    { echo "error: GPU_PYTHON=$(GPU_PYTHON) does not run; name a Python of the other machine's version"; exit 1; }
	$(VENV)-gpu/bin/python -m pip install -q $(GPU_STACK) numpy setuptools wheel ninja pybind11
	$(VENV)-gpu/bin/python -m benchmarks.gpu_check --prepare $(or $(DIR),build/gpu) $(if $(WHEELS),--wheels $(WHEELS)) \
	    $(if $(MSRC),--msrc $(MSRC)) $(if $(WEIGHTS),--encoder-weights $(WEIGHTS))

# Test the kernels with the Python, torch and Triton of the GPU machine: compiled ahead of time, and in the interpreter,
# which needs an older numpy in Triton 3.6.
test-gpu-stack:
	@test -x $(VENV)-gpu/bin/python || $(GPU_PYTHON) -m venv $(VENV)-gpu || \
	    { echo "error: GPU_PYTHON=$(GPU_PYTHON) does not run; name a Python of the other machine's version"; exit 1; }
	$(VENV)-gpu/bin/python -m pip install -q $(GPU_STACK) 'numpy<2.4' setuptools wheel ninja pybind11 \
	    pytest pytest-xdist pytest-timeout hypothesis
	U2PL_FAST_CUDA=0 $(VENV)-gpu/bin/python setup.py -q build_ext --inplace
	OMP_NUM_THREADS=1 $(VENV)-gpu/bin/python -m pytest -q -n 2 tests/kernels/test_aot.py tests/kernels/test_aot_contrastive.py
	TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(VENV)-gpu/bin/python -m pytest -q -n 2 tests/interpret

# Test the ops on a build that stops at an access out of bounds or undefined behavior. Load the sanitizer before Python,
# together with libstdc++, since otherwise it does not see exceptions.
sanitize: $(VENV)/built
	U2PL_FAST_SANITIZE=1 U2PL_FAST_CUDA=0 $(RUN) setup.py -q build --build-base build/sanitize --build-lib build/sanitized
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libstdc++.so)" ASAN_OPTIONS=detect_leaks=0 \
	    PYTHONPATH=build/sanitized:$(CURDIR) U2PL_FAST_TESTED=build/sanitized \
	    $(VENV)/bin/pytest -q --import-mode=importlib -p no:cacheprovider tests/ops tests/method/test_memory_bank.py

clean:
	rm -rf build dist *.egg-info u2pl_fast/_C*.so

# Without build isolation, the extension is compiled against the torch that loads it.
$(VENV)/ready: setup.py pyproject.toml Makefile
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install -q --upgrade pip setuptools wheel ninja pybind11
	$(RUN) -c "import torch, torchvision" 2>/dev/null || $(RUN) -m pip install -q $(TORCH)
	U2PL_FAST_BUILD=0 $(RUN) -m pip install -q --no-build-isolation -e '.[dev]'
	touch $@

$(VENV)/built: $(VENV)/ready $(SOURCES)
	$(RUN) setup.py -q build_ext --inplace
	touch $@
