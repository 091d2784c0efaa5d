"""A step of two tasks on stacks of scanned layers, of which tests read the program."""

import jax
import jax.numpy as jnp
import optax

import gems_jax as gj

TASKS = 2


def loss(params, x):
    def layer(x, kernels):
        for kernel in kernels:
            x = jnp.tanh(x @ kernel)
        return x, None

    return jnp.mean(jnp.square(jax.lax.scan(layer, x, tuple(params.values()))[0]))


def traced_step(kernels, layers, width, rank, gradients, wrap=lambda tx: tx):
    """A step on stacks of one shape, not compiled; ``gradients(loss, tx)`` takes parameters, state and batch."""
    params = {f"{n}/kernel": jax.ShapeDtypeStruct((layers, width, width), jnp.float32) for n in range(kernels)}
    tx = wrap(gj.gems(1e-2, num_tasks=TASKS, rank=rank, matrix_dims=gj.stacked_matrix_dims))

    def step(params, state, batch):
        losses, grads = gradients(loss, tx)(params, state, batch)
        updates, state = tx.update(grads, state, params, task_losses=losses)
        return optax.apply_updates(params, updates), state

    batch = jax.ShapeDtypeStruct((TASKS, 8, width), jnp.float32)
    return jax.jit(step, donate_argnums=(0, 1)).trace(params, jax.eval_shape(tx.init, params), batch)
