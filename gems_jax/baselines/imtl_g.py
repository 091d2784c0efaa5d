"""IMTL-G: a gradient with equal projections on all tasks' gradients."""

import jax
import jax.numpy as jnp
import optax

from gems_jax.baselines.weighting import Tasks, cosines, inverse_eigenvalues, weighted
from gems_jax.types import PyTree


def equal_projections(tasks: Tasks, state: PyTree) -> tuple[jax.Array, PyTree]:
    """``a`` with ``<sum_s a_s g_s, g_t / |g_t|>`` equal and positive for all tasks, ``|sum a| = 1``."""
    cosine, norms = cosines(tasks)
    values, vectors = jnp.linalg.eigh(cosine)
    inverse, _ = inverse_eigenvalues(values, 1.0)
    ones = tasks.present.astype(jnp.float32)
    a = vectors @ (inverse * (ones @ vectors)) / norms * ones
    total = jnp.abs(jnp.sum(a))
    # The sum vanishes on a thin set of inputs, where weights would grow without bound.
    return a / jnp.maximum(jnp.maximum(total, 1e-3 * jnp.sum(jnp.abs(a))), jnp.finfo(jnp.float32).tiny), state


def imtl_g(
    inner_tx: optax.GradientTransformation, *, num_tasks: int | None = None
) -> optax.GradientTransformationExtraArgs:
    """Impartial gradients: ``G = sum_t a_t g_t``, ``sum a = 1``, with equal ``<G, g_t / |g_t|>`` for all tasks.

    Closed form ``a ~ M^+ n``, ``M`` the Gramian and ``n`` the norms (Liu et al., *Towards Impartial Multi-task
    Learning*, ICLR 2021, section 3.1). Weights may be negative. Where their sum would make all projections
    negative, the sign that descends is kept (``sum a = -1``).

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
      >>> tx = imtl_g(optax.sgd(1.0))
      >>> updates, _ = tx.update(jnp.array([[3.0, 0.0], [0.0, 1.0]]), tx.init(params), params)
      >>> [round(x, 3) for x in updates.tolist()]
      [-0.75, -0.75]
    """
    return weighted("imtl_g", inner_tx, equal_projections, num_tasks=num_tasks)
