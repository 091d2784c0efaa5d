"""MGDA: the shortest convex combination of the tasks' gradients."""

import jax
import optax

from gems_jax.baselines.simplex import minimise_on_simplex
from gems_jax.baselines.weighting import Tasks, relative_gramian, weighted
from gems_jax.types import PyTree


def shortest(tasks: Tasks, state: PyTree) -> tuple[jax.Array, PyTree]:
    """``argmin |sum_t w_t g_t|^2`` over the simplex of the tasks present."""
    gramian, _ = relative_gramian(tasks)
    return minimise_on_simplex(lambda w: (gramian @ w, gramian), tasks.present), state


def mgda(
    inner_tx: optax.GradientTransformation, *, num_tasks: int | None = None
) -> optax.GradientTransformationExtraArgs:
    """Multiple-gradient descent: ``G = sum_t w_t G_t``, ``w = argmin |sum_t w_t G_t|^2`` over the simplex.

    ``<G, G_t> >= |G|^2`` for every task, so a small step raises no loss (Desideri 2012; Sener and Koltun, arXiv
    1810.04650, equation 3). Tasks with small gradients weigh most.

    Args:
      inner_tx: optimiser of the merged gradient.
      num_tasks: ``T``, to check the gradients against; ``None``: as they come.

    Returns:
      A transform whose ``update(grads, state, params, task_losses=None, task_counts=None)`` takes leaves
      ``[T, *shape]`` (or ``[1, *shape]``) and returns ``[*shape]``. Counts only tell which tasks are absent.

    Raises:
      ValueError: ``num_tasks`` below 1; in ``update`` a leaf without its task axis.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> params = jnp.zeros(2)
      >>> tx = mgda(optax.sgd(1.0))
      >>> updates, _ = tx.update(jnp.array([[1.0, 1.0], [1.0, -3.0]]), tx.init(params), params)
      >>> [round(x, 3) for x in updates.tolist()]
      [-1.0, -0.0]
    """
    return weighted("mgda", inner_tx, shortest, num_tasks=num_tasks)
