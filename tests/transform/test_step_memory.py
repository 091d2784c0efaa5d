"""The memory of a step on whole gradients, as its compiled program says; nothing is run."""

import pytest
from scanned_step import TASKS, traced_step

import gems_jax as gj


@pytest.mark.slow
@pytest.mark.parametrize("every", [1, 2])
def test_a_step_on_scanned_layers_makes_no_copies_of_the_tasks_gradients(every):
    # 1.6 times the gradients; 3.7 when they were copied in the order that their shape tells, for their norms and once
    # more for a refresh. With sums that the state keeps 1.7; 3.0 when these were taken to lie as new gradients do.
    layers, width, kernels = 8, 512, 4

    def gradients(loss, tx):
        return lambda params, state, batch: gj.task_value_and_grad(loss)(params, batch)

    wrap = (lambda tx: tx) if every == 1 else lambda tx: gj.accumulate(tx, every)
    traced = traced_step(kernels, layers, width, 8, gradients, wrap)
    all_gradients = 4 * TASKS * kernels * layers * width**2
    assert traced.lower().compile().memory_analysis().temp_size_in_bytes < 2 * all_gradients
