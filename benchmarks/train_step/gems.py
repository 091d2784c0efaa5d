"""GEMS in both ways that a step can take: on full gradients of the tasks, and on gradients projected as they arise."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax

import gems_jax as gj
from benchmarks.train_step.jax_step import JaxMethod
from benchmarks.train_step.problem import LEARNING_RATE, REFRESH_EVERY, TASKS, Problem

# ``None`` where this version of the library always takes full gradients.
PROJECTED: Callable[..., Any] | None = getattr(gj, "projected_task_grads", None)


def gems(problem: Problem, projected: bool) -> JaxMethod:
    """GEMS with its defaults, the ranks and the null space apart.

    Args:
      problem: to be trained on.
      projected: whether the backward pass yields ``U^T G`` instead of ``G``.
    """
    tx = gj.gems(
        LEARNING_RATE,
        num_tasks=TASKS,
        rank=problem.rank,
        task_rank=problem.task_rank,
        refresh_every=REFRESH_EVERY,
        null_space=problem.null_space(),
        matrix_dims=gj.stacked_matrix_dims,
    )

    def step(kernels: Any, state: Any, frozen: Any, batch: Any) -> Any:
        def loss_of(kernels: Any, batch: Any) -> Any:
            return problem.loss(kernels, frozen, batch)

        counts = jnp.sum(batch["label_mask"], axis=(1, 2))
        if projected:
            assert PROJECTED is not None
            task_grads = PROJECTED(loss_of, tx, has_aux=False)
            losses, grads = task_grads(kernels, state, batch, task_counts=counts)
        else:
            losses, grads = gj.task_value_and_grad(loss_of)(kernels, batch)
        updates, state = tx.update(grads, state, kernels, task_losses=losses, task_counts=counts)
        return optax.apply_updates(kernels, updates), state, losses

    return JaxMethod(lambda kernels, frozen: (kernels, tx.init(kernels), frozen), step, joint=False, refreshes=True)
