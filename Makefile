# `make demo` and `make test` need nothing but Python ≥ 3.11 and pip; the first call of either sets up .venv.
PYTHON ?= python3
TORCH ?= torch==2.14.1 torchvision==0.29.1
VENV := .venv
RUN := $(VENV)/bin/python
SOURCES := $(shell find csrc -type f 2>/dev/null)

.PHONY: demo test test-kernels lint bench clean

demo: $(VENV)/built
	rm -rf runs/demo
	$(RUN) -m u2pl_fast.train --amp --channels-last --out runs/demo
	$(RUN) -m u2pl_fast.evaluate --checkpoint runs/demo/best.pt --json runs/demo/evaluation.json
	$(RUN) -m u2pl_fast.data.export_shapes --count 4 --out runs/demo/images
	$(RUN) -m u2pl_fast.predict runs/demo/images --checkpoint runs/demo/best.pt --out runs/demo/predictions
	@echo "checkpoints, log and TensorBoard in runs/demo; pictures in runs/demo/predictions"

test: lint
	$(RUN) -m pytest -q tests --ignore tests/interpret --ignore-glob 'tests/test_aot*.py'

# The Triton kernels without a GPU, in triton's interpreter and compiled ahead of time: many minutes.
test-kernels: $(VENV)/built
	TRITON_INTERPRET=1 $(RUN) -m pytest -q tests/interpret
	$(RUN) -m pytest -q tests/test_aot.py tests/test_aot_contrastive.py

lint: $(VENV)/built
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

bench: $(VENV)/built
	$(RUN) -m benchmarks

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
