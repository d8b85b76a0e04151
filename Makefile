# `make demo` and `make test` need nothing but Python ≥ 3.11 and pip; the first call of either sets up .venv.
PYTHON ?= python3
TORCH ?= torch==2.14.1 torchvision==0.29.1
GPU_PYTHON ?= python3.12
GPU_STACK ?= torch==2.11.0 triton==3.6.0
VENV := .venv
RUN := $(VENV)/bin/python
# Two tests at a time, and one thread for each of the processes that they start.
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

# The Triton kernels need no GPU here: they are compiled ahead of time, and run in triton's interpreter, which is a
# matter of the process.
test: lint
	$(PYTEST) tests --ignore tests/interpret
	TRITON_INTERPRET=1 $(PYTEST) tests/interpret

# While you work: no training, no other process, nothing compiled.
quick: $(VENV)/built
	$(PYTEST) -m "not slow" tests --ignore tests/interpret

lint: $(VENV)/built
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/basedpyright --pythonpath $(RUN) --warnings

bench: $(VENV)/built
	$(RUN) -m benchmarks

# The pages as a site, in site/. They need nothing of the project's own environment.
docs: $(VENV)-docs/ready
	NO_MKDOCS_2_WARNING=1 $(VENV)-docs/bin/mkdocs build --strict --quiet

$(VENV)-docs/ready: pyproject.toml
	test -x $(VENV)-docs/bin/python || $(PYTHON) -m venv $(VENV)-docs
	$(PYTHON) -c "import tomllib; \
	    print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['docs'])" \
	    | xargs $(VENV)-docs/bin/python -m pip install -q
	touch $@

# On a machine with a GPU and torch; nothing is downloaded. OUT: a folder for the results; CARRIED: what gpu-prepare made.
gpu-check:
	$(PYTHON) -m benchmarks.gpu_check --out $(or $(OUT),gpu-check) $(if $(CARRIED),--carried $(CARRIED))

# Without a GPU: makes DIR, which saves that machine's time. GPU_PYTHON, GPU_STACK: the Python and the versions that it has.
# WHEELS: a folder of wheels that it lacks. MSRC, WEIGHTS: MSRC-21 and a timm .safetensors file, to train there as well.
gpu-prepare:
	@test -x $(VENV)-gpu/bin/python || $(GPU_PYTHON) -m venv $(VENV)-gpu || \
	    { echo "error: GPU_PYTHON=$(GPU_PYTHON) does not run; name a Python of the other machine's version"; exit 1; }
	$(VENV)-gpu/bin/python -m pip install -q $(GPU_STACK) numpy setuptools wheel ninja pybind11
	$(VENV)-gpu/bin/python -m benchmarks.gpu_check --prepare $(or $(DIR),build/gpu) $(if $(WHEELS),--wheels $(WHEELS)) \
	    $(if $(MSRC),--msrc $(MSRC)) $(if $(WEIGHTS),--encoder-weights $(WEIGHTS))

# The kernels with the Python, torch and Triton of the GPU's machine: in the interpreter, which in Triton 3.6 wants an
# older numpy, and compiled ahead of time.
test-gpu-stack:
	@test -x $(VENV)-gpu/bin/python || $(GPU_PYTHON) -m venv $(VENV)-gpu || \
	    { echo "error: GPU_PYTHON=$(GPU_PYTHON) does not run; name a Python of the other machine's version"; exit 1; }
	$(VENV)-gpu/bin/python -m pip install -q $(GPU_STACK) 'numpy<2.4' setuptools wheel ninja pybind11 \
	    pytest pytest-xdist pytest-timeout hypothesis
	U2PL_FAST_CUDA=0 $(VENV)-gpu/bin/python setup.py -q build_ext --inplace
	OMP_NUM_THREADS=1 $(VENV)-gpu/bin/python -m pytest -q -n 2 tests/kernels/test_aot.py tests/kernels/test_aot_contrastive.py
	TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(VENV)-gpu/bin/python -m pytest -q -n 2 tests/interpret

# The tests of the ops once more, on a build that stops at any access out of bounds and any undefined behavior. The
# sanitizer must be loaded before Python, and libstdc++ with it, or it does not see exceptions.
sanitize: $(VENV)/built
	U2PL_FAST_SANITIZE=1 U2PL_FAST_CUDA=0 $(RUN) setup.py -q build --build-base build/sanitize --build-lib build/sanitized
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libstdc++.so)" ASAN_OPTIONS=detect_leaks=0 \
	    PYTHONPATH=build/sanitized:$(CURDIR) U2PL_FAST_TESTED=build/sanitized \
	    $(VENV)/bin/pytest -q --import-mode=importlib -p no:cacheprovider tests/ops tests/method/test_memory_bank.py

clean:
	rm -rf build dist *.egg-info u2pl_fast/_C*.so

# Without build isolation the extension is compiled against the torch that will load it.
$(VENV)/ready: setup.py pyproject.toml Makefile
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install -q --upgrade pip setuptools wheel ninja pybind11
	$(RUN) -c "import torch, torchvision" 2>/dev/null || $(RUN) -m pip install -q $(TORCH)
	U2PL_FAST_BUILD=0 $(RUN) -m pip install -q --no-build-isolation -e '.[dev]'
	touch $@

$(VENV)/built: $(VENV)/ready $(SOURCES)
	$(RUN) setup.py -q build_ext --inplace
	touch $@
