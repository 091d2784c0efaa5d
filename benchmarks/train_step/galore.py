"""GaLore by optax on the joint gradient; optax takes matrices alone, so gradients of layers are taken apart for it."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from benchmarks.train_step.jax_step import JaxMethod
from benchmarks.train_step.problem import LEARNING_RATE, REFRESH_EVERY, Kernels, Problem


def galore(problem: Problem) -> JaxMethod:
    tx = optax.contrib.galore(LEARNING_RATE, rank=problem.rank, update_proj_gap=REFRESH_EVERY)

    def step(kernels: Any, state: Any, frozen: Any, batch: Any) -> Any:
        loss, grads = jax.value_and_grad(problem.loss)(kernels, frozen, batch)
        updates, state = tx.update(layers(grads), state, layers(kernels))
        updates = {path: jnp.stack(of_layers) for path, of_layers in updates.items()}
        return optax.apply_updates(kernels, updates), state, loss

    def start(kernels: Any, frozen: Any) -> Any:
        return kernels, tx.init(layers(kernels)), frozen

    return JaxMethod(start, step, joint=True, refreshes=True)


def layers(stacked: Kernels) -> dict[str, list[jax.Array]]:
    """Kernels ``[L, in, out]`` as matrices."""
    return {path: list(stack) for path, stack in stacked.items()}
