# Each target does its own set-up: Python 3.11 (or newer) and a package registry are all that is needed.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# LAPACK's threads fight XLA's on CPU.
export OPENBLAS_NUM_THREADS ?= 1
CORE_TESTS := tests/test_house.py tests/test_task_grads.py $(addprefix tests/,linalg null_space transform projected baselines)
# Of these the files, one of what takes long, and the examples that need jax and optax alone.
WHEEL_TESTS := $(addprefix tests/,test_task_grads.py linalg transform/test_transform.py null_space/test_null_space.py \
	baselines/test_formulas.py) \
	"tests/projected/test_training.py::test_each_step_from_one_state_is_that_on_whole_gradients[protected]"
CORE_EXAMPLES := plain_optax constrained_adamw three_tasks scan_on_a_mesh
# Beside the core, what flax, orbax and transformers are asked for: models, checkpoints, tokenizers.
MATRIX_TESTS := $(CORE_TESTS) $(addprefix tests/,items/test_items.py training/test_checkpoints.py data/test_prompts.py data/test_chat.py)
PYTHONS ?= python3.11 python3.12 python3.13
MATRIX_TOOLS := "pytest>=9,<10" "pytest-xdist>=3.8,<4" "hypothesis>=6.150,<7"

.PHONY: demo test test-fast test-matrix lint dist docs audit example-tunix clean

demo: $(VENV)/train.stamp
	$(BIN)/gems-jax demo

# Two processes; files stay whole, for what their tests share, and in their order, which has the long ones before the end.
test: $(VENV)/test.stamp lint
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --durations 40

# The core, for the inner loop; a test of seconds is marked slow.
test-fast: $(VENV)/test.stamp
	$(BIN)/python -m pytest -q -n 2 -m "not slow" $(CORE_TESTS)

# With the lowest and with the newest versions of the ranges in pyproject.toml, by each Python.
test-matrix:
	for python in $(PYTHONS); do for end in lowest newest; do \
		$$python -m venv --clear $(VENV)-matrix && \
		$$python tests/helpers/ends.py $$end > $(VENV)-matrix/$$end.txt && \
		$(VENV)-matrix/bin/pip install --quiet --constraint $(VENV)-matrix/$$end.txt --editable '.[train,serve]' $(MATRIX_TOOLS) && \
		$(VENV)-matrix/bin/pip list | grep -E "^(jax|flax|optax|orbax-checkpoint|transformers) " && \
		$(VENV)-matrix/bin/python -m pytest -q -n 2 -m "not slow" $(MATRIX_TESTS) || exit 1; \
	done; done

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy gems_jax planning

# requirements.txt pins every package, so that next month's install is this month's.
$(VENV)/bin/pip:
	$(PYTHON) -m venv $(VENV)

$(VENV)/train.stamp: $(VENV)/bin/pip requirements.txt pyproject.toml
	$(BIN)/pip install --quiet --constraint requirements.txt --editable '.[train]'
	touch $@

$(VENV)/test.stamp: $(VENV)/train.stamp requirements.txt pyproject.toml
	$(BIN)/pip install --quiet --constraint requirements.txt --editable '.[train,serve,test]'
	touch $@

# The wheel and the source archive, as a registry would get them; then the wheel in an environment of its own, in which jax
# and optax are alone: tests of the core that need no more, and examples, from a folder that the checkout is not in. With CI
# set, hypothesis asks no example to be fast; small programs are compiled as tests/conftest.py has them compiled.
dist: $(VENV)-dist/stamp
	rm -rf dist $(VENV)-wheel
	$(VENV)-dist/bin/python -m build
	$(VENV)-dist/bin/twine check --strict dist/*
	$(PYTHON) -m venv $(VENV)-wheel
	$(VENV)-wheel/bin/pip install --quiet dist/*.whl "pytest>=9,<10" "hypothesis>=6.150,<7"
	cp -r tests examples $(VENV)-wheel/
	cd $(VENV)-wheel && CI=1 JAX_DISABLE_MOST_OPTIMIZATIONS=1 PYTHONPATH=tests/helpers \
		bin/pytest -q -c /dev/null --rootdir . --noconftest \
		-o markers=slow --import-mode=importlib -p no:cacheprovider -k "not nnx" $(WHEEL_TESTS)
	cd $(VENV)-wheel && for name in $(CORE_EXAMPLES); do bin/python examples/$$name.py || exit 1; done

$(VENV)-dist/stamp:
	$(PYTHON) -m venv $(VENV)-dist
	$(VENV)-dist/bin/pip install --quiet "build>=1.3,<2" "twine>=6.2,<8"
	touch $@

# The pages as a site in site/, which needs no server; a warning ends it.
docs: $(VENV)-docs/stamp
	NO_MKDOCS_2_WARNING=1 $(VENV)-docs/bin/mkdocs build --strict --quiet

$(VENV)-docs/stamp: pyproject.toml
	$(PYTHON) -m venv $(VENV)-docs
	$(VENV)-docs/bin/pip install --quiet "mkdocs-material>=9.6,<10" "mkdocstrings[python]>=1,<2"
	touch $@

# Known holes in the versions of requirements.txt, from PyPI's own service: most mirrors have none, and then it ends with an error.
audit: $(VENV)-audit/stamp
	$(VENV)-audit/bin/pip-audit --requirement requirements.txt --no-deps --disable-pip --strict

$(VENV)-audit/stamp:
	$(PYTHON) -m venv $(VENV)-audit
	$(VENV)-audit/bin/pip install --quiet "pip-audit>=2.10,<3"
	touch $@

# tunix and the train extra want different safetensors, so tunix is installed beside the optimiser alone.
example-tunix: $(VENV)-tunix/stamp
	$(VENV)-tunix/bin/python examples/tunix_trainer.py

$(VENV)-tunix/stamp: pyproject.toml
	$(PYTHON) -m venv $(VENV)-tunix
	$(VENV)-tunix/bin/pip install --quiet --editable . google-tunix==0.1.7 flax==0.12.8
	touch $@

clean:
	rm -rf $(VENV) $(addprefix $(VENV)-,tunix audit dist docs wheel matrix) dist site runs
