# Each target does its own set-up: Python 3.11 (or newer) and a package registry are all that is needed.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# LAPACK's threads fight XLA's on CPU.
export OPENBLAS_NUM_THREADS ?= 1
CORE_TESTS := tests/test_house.py tests/test_task_grads.py $(addprefix tests/,linalg null_space transform projected baselines)

.PHONY: demo test test-fast lint example-tunix clean

demo: $(VENV)/train.stamp
	$(BIN)/gems-jax demo

# Two processes; files stay whole, for what their tests share, and in their order, which has the long ones before the end.
test: $(VENV)/test.stamp lint
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

# The core, for the inner loop; a test of seconds is marked slow.
test-fast: $(VENV)/test.stamp
	$(BIN)/python -m pytest -q -n 2 -m "not slow" $(CORE_TESTS)

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy gems_jax planning

# requirements.txt pins every package, so that next month's install is this month's.
$(VENV)/bin/pip:
	$(PYTHON) -m venv $(VENV)

$(VENV)/train.stamp: $(VENV)/bin/pip requirements.txt setup.py
	$(BIN)/pip install --quiet --constraint requirements.txt --editable '.[train]'
	touch $@

$(VENV)/test.stamp: $(VENV)/train.stamp requirements.txt setup.py
	$(BIN)/pip install --quiet --constraint requirements.txt --editable '.[train,test]'
	touch $@

# tunix and the train extra want different safetensors, so tunix is installed beside the optimiser alone.
example-tunix: $(VENV)-tunix/stamp
	$(VENV)-tunix/bin/python examples/tunix_trainer.py

$(VENV)-tunix/stamp: setup.py
	$(PYTHON) -m venv $(VENV)-tunix
	$(VENV)-tunix/bin/pip install --quiet --editable . google-tunix==0.1.7 flax==0.12.8
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-tunix runs
