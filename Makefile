# VL4AD for ROS 2. `make demo` shows it, `make test` checks it, `make run` keeps it running for your camera.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.vl4ad-installed
# On top of a sourced ROS 2 its own rclpy is used and the ROS wheels from PyPI stay out.
ifdef ROS_DISTRO
VENV_FLAGS := --system-site-packages
EXTRAS := model,images,evaluation,onnx,openvino,train
else
VENV_FLAGS :=
EXTRAS := model,ros,images,evaluation,onnx,openvino,train
endif
TEST_EXTRAS := dev,packaging,scenes,tensorrt
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: help setup setup-test demo run test test-fast lint format clean

help:
	@echo "make demo   set up, run the node on the recorded bag, name a hazard half-way, show what changed"
	@echo "make run    keep the detector running for your camera: make run IMAGE=/camera/image"
	@echo "make test   every test (no GPU, no ROS installation needed)"
	@echo "make lint   ruff and mypy"
	@echo "make setup  only set up $(VENV)"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: make demo PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV_FLAGS) $(VENV)

# make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu: PyTorch from there, and nothing else.
TORCH_FROM := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

# torch alone, then torchvision without dependencies, then the rest: nothing may replace a CPU build of torch.
$(VENV)/.vl4ad-torch: constraints.txt | $(BIN)/python
	@echo "installing PyTorch and what else is needed into $(VENV): about 2 GB, some minutes the first time"
	$(PIP) $(TORCH_FROM) -c constraints.txt torch==2.13.0
	$(PIP) $(TORCH_FROM) -c constraints.txt --no-deps torchvision==0.28.0
	@touch $@

SOURCES := $(shell find vl4ad_model vl4ad_ros launch config scripts -type f -not -name '*.pyc' 2>/dev/null)

$(STAMP): $(VENV)/.vl4ad-torch setup.py setup.cfg pyproject.toml package.xml constraints.txt $(SOURCES)
	$(PIP) -c constraints.txt --upgrade '.[$(EXTRAS)]'
	@touch $@

$(VENV)/.vl4ad-test: $(STAMP)
	$(PIP) -c constraints.txt '.[$(EXTRAS),$(TEST_EXTRAS)]'
	@touch $@

setup: $(STAMP)

setup-test: $(VENV)/.vl4ad-test

demo: setup
	$(BIN)/python -m vl4ad_ros.demo $(DEMO_ARGS)

IMAGE ?= /camera/image
run: setup
	exec $(BIN)/python -m vl4ad_ros.detector_node --ros-args -r image:=$(IMAGE) $(RUN_ARGS)

# First the tests that may share the machine, two at a time, then the others (test/conftest.py). 5 = PYTEST_ARGS selected none there.
test: setup-test
	@shared=0; alone=0; \
	VL4AD_TEST_PART=shared $(BIN)/python -m pytest -n 2 --dist loadfile $(PYTEST_ARGS) || shared=$$?; \
	[ $$shared -eq 0 ] || [ $$shared -eq 5 ] || exit $$shared; \
	VL4AD_TEST_PART=alone $(BIN)/python -m pytest $(PYTEST_ARGS) || alone=$$?; \
	[ $$alone -eq 5 ] && alone=$$shared; exit $$alone

test-fast: setup-test
	$(BIN)/python -m pytest -m "not slow" $(PYTEST_ARGS)

lint: setup-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy vl4ad_model vl4ad_ros

format: setup-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
