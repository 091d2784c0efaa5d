"""AdamW on the joint batch: one gradient, that of the mean over all tasks' label tokens. All ratios are against it."""

from typing import Any

import jax
import optax

from benchmarks.train_step.jax_step import JaxMethod
from benchmarks.train_step.problem import LEARNING_RATE, Problem


def joint_adamw(problem: Problem) -> JaxMethod:
    tx = optax.adamw(LEARNING_RATE)

    def step(kernels: Any, state: Any, frozen: Any, batch: Any) -> Any:
        loss, grads = jax.value_and_grad(problem.loss)(kernels, frozen, batch)
        updates, state = tx.update(grads, state, kernels)
        return optax.apply_updates(kernels, updates), state, loss

    return JaxMethod(lambda kernels, frozen: (kernels, tx.init(kernels), frozen), step, joint=True, refreshes=False)
