"""Clipping of gradients that have a task axis."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from gems_jax.task_grads import task_weights, weighted_sum
from gems_jax.transform.low_rank_gradient import is_low_rank
from gems_jax.types import PyTree


def clip_tasks(max_norm: float, by: Literal["task", "global"]) -> optax.GradientTransformationExtraArgs:
    """Scales gradients ``[T, *shape]`` down to a norm, before they are merged.

    ``"task"``: ``G_t min(1, c / |G_t|)`` for each task on its own, so that a single task cannot take over; gates that
    look at gradient norms then see the clipped ones. ``"global"``: all by ``min(1, c / |sum_t w_t G_t|)``, ``w_t`` the
    tasks' shares of the label tokens: what ``optax.clip_by_global_norm`` does to the joint gradient.

    Args:
      max_norm: ``c``, above 0.
      by: ``"task"`` or ``"global"``.

    Returns:
      A transform to stand first in a chain.

    Raises:
      ValueError: ``max_norm`` is not above 0.

    Example:
      >>> grads = jnp.array([[3.0, 4.0], [0.3, 0.4]])
      >>> tx = clip_tasks(1.0, "task")
      >>> clipped, _ = tx.update(grads, tx.init(None))
      >>> jnp.allclose(clipped, jnp.array([[0.6, 0.8], [0.3, 0.4]])).item()
      True
    """
    if not max_norm > 0:
        raise ValueError(f"train.clip is the largest norm a gradient may have, above 0; got {max_norm}")

    def update_fn(
        updates: PyTree,
        state: optax.EmptyState,
        params: PyTree | None = None,
        *,
        task_counts: jax.Array | None = None,
        **extra: Any,
    ) -> tuple[PyTree, optax.EmptyState]:
        del params, extra
        nodes = jax.tree.leaves(updates, is_leaf=is_low_rank)
        leaves = [x for node in nodes for x in (node.standing_in() if is_low_rank(node) else [node])]
        tasks = max(leaf.shape[0] for leaf in leaves)
        if by == "task":
            squares = [jnp.sum(leaf.astype(jnp.float32) ** 2, axis=tuple(range(1, leaf.ndim))) for leaf in leaves]
        else:
            weights = task_weights(task_counts, tasks)
            squares = [jnp.sum(weighted_sum(leaf, weights) ** 2)[None] for leaf in leaves]
        norms = jnp.sqrt(sum(squares, jnp.zeros((1,), jnp.float32)))
        scale = jnp.minimum(1.0, max_norm / jnp.maximum(norms, 1e-30))

        def scaled(leaf: Any) -> Any:
            if is_low_rank(leaf):
                return leaf.scaled(scale)
            return leaf * scale.reshape(-1, *(1,) * (leaf.ndim - 1)).astype(leaf.dtype)

        return jax.tree.map(scaled, updates, is_leaf=is_low_rank), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update_fn)
