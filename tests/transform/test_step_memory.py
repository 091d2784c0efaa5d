"""The memory of a step on whole gradients, as its compiled program says; nothing is run."""

import jax
import jax.numpy as jnp
import optax
import pytest

import gems_jax as gj


@pytest.mark.slow
@pytest.mark.parametrize("every", [1, 2])
def test_a_step_on_scanned_layers_makes_no_copies_of_the_tasks_gradients(every):
    # 1.6 times the gradients; 3.7 when they were copied in the order that their shape tells, for their norms and once
    # more for a refresh. With sums that the state keeps 1.7; 3.0 when these were taken to lie as new gradients do.
    tasks, layers, width, kernels = 2, 8, 512, 4
    params = {f"{n}/kernel": jax.ShapeDtypeStruct((layers, width, width), jnp.float32) for n in range(kernels)}
    tx = gj.gems(1e-2, num_tasks=tasks, rank=8, matrix_dims=gj.stacked_matrix_dims)
    tx = tx if every == 1 else gj.accumulate(tx, every)

    def loss(params, x):
        def layer(x, kernels):
            for kernel in kernels:
                x = jnp.tanh(x @ kernel)
            return x, None

        return jnp.mean(jnp.square(jax.lax.scan(layer, x, tuple(params.values()))[0]))

    def step(params, state, batch):
        losses, grads = gj.task_value_and_grad(loss)(params, batch)
        updates, state = tx.update(grads, state, params, task_losses=losses)
        return optax.apply_updates(params, updates), state

    batch = jax.ShapeDtypeStruct((tasks, 8, width), jnp.float32)
    lowered = jax.jit(step, donate_argnums=(0, 1)).lower(params, jax.eval_shape(tx.init, params), batch)
    all_gradients = 4 * tasks * kernels * layers * width**2
    assert lowered.compile().memory_analysis().temp_size_in_bytes < 2 * all_gradients
