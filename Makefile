# make install   .venv with what the main job needs
# make demo      the same, then a phantom through the whole pipeline
# make test      the same plus the development extras, then the tests (test-slow: all of them)
# make test-nerf an environment of its own with nerfstudio, 3.5 GB, and the tests that need it
# make check     the acceptance commands against their limits
# make bench     how fast surfaces and depth maps are scored, how fast networks run, and the pipeline beside structure from motion
# make lint      ruff

PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/python -m pip install --constraint constraints.txt

.PHONY: install demo test test-slow test-nerf check bench lint

install: $(VENV)/.installed

demo: install
	$(VENV)/bin/recon demo

# A process to a processor, a file of tests to a process, for fixtures are shared inside of files.
PYTEST := -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

test: $(VENV)/.developing
	$(VENV)/bin/python $(PYTEST)

test-slow: $(VENV)/.developing
	$(VENV)/bin/python $(PYTEST) --slow

# Nerfstudio wants older libraries than the rest; torch first, or pip takes one with CUDA.
test-nerf:
	$(PYTHON) -m venv .venv-nerf
	.venv-nerf/bin/python -m pip install torch==2.13.0
	.venv-nerf/bin/python -m pip install torchvision==0.28.0
	.venv-nerf/bin/python -m pip install --editable '.[nerf]' pytest beartype
	.venv-nerf/bin/python -m pytest --slow tests/test_nerf_nerfstudio.py

check: $(VENV)/.developing
	$(VENV)/bin/python tests/acceptance/check.py

bench: $(VENV)/.developing
	$(VENV)/bin/python tests/bench/bench_eval.py
	$(VENV)/bin/python tests/bench/bench_networks.py
	$(VENV)/bin/python tests/bench/bench_splats.py
	$(VENV)/bin/python tests/bench/bench_pipeline.py

lint: $(VENV)/.developing
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

# Debian keeps pip's own wheels in a package that may be absent; then the pip outside fetches one for the inside.
$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV) >/dev/null 2>&1 || { \
		$(PYTHON) -m venv --clear --without-pip $(VENV) && \
		$(PYTHON) -m pip --python $(VENV)/bin/python install pip; }

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(VENV)/bin/python -I recon/cli/system_libraries.py
	$(PIP) --editable .
	touch $@

$(VENV)/.developing: $(VENV)/.installed
	$(PIP) --editable '.[dev]'
	touch $@
