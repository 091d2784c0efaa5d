"""Joint training: one gradient over all tasks' tokens."""

import jax
import jax.numpy as jnp
import optax

from gems_jax.baselines.weighting import Tasks, weighted
from gems_jax.task_grads import task_weights
from gems_jax.types import PyTree


def weights_by_counts(tasks: Tasks, state: PyTree) -> tuple[jax.Array, PyTree]:
    """``w_t = count_t / sum(count)`` over the tasks whose gradients are finite."""
    dtype = tasks.counts.dtype
    weights = task_weights(jnp.where(tasks.finite, tasks.counts, 0), tasks.counts.shape[0], dtype)
    return weights, state


def joint(
    inner_tx: optax.GradientTransformation, *, num_tasks: int | None = None
) -> optax.GradientTransformationExtraArgs:
    """Joint training, what most systems do: the gradient of the mean over all tasks' tokens.

    ``G = sum_t w_t G_t``, ``w_t = count_t / sum(count)``: `gems_jax.merge_tasks` before ``inner_tx``, with tasks
    that are not finite left out.

    Args:
      inner_tx: optimiser of the merged gradient, such as ``optax.adamw(1e-3)``.
      num_tasks: ``T``, to check the gradients against; ``None``: as they come.

    Returns:
      A transform whose ``update(grads, state, params, task_losses=None, task_counts=None)`` takes leaves
      ``[T, *shape]`` (or ``[1, *shape]``) and returns ``[*shape]``. Without counts the weights are equal.

    Raises:
      ValueError: ``num_tasks`` below 1; in ``update`` a leaf without its task axis, or counts of another shape.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> params = jnp.zeros(2)
      >>> tx = joint(optax.sgd(1.0))
      >>> grads = jnp.array([[1.0, 1.0], [5.0, 5.0]])
      >>> tx.update(grads, tx.init(params), params, task_counts=jnp.array([3, 1]))[0].tolist()
      [-2.0, -2.0]
    """
    return weighted("joint", inner_tx, weights_by_counts, num_tasks=num_tasks, takes_shared=True)
