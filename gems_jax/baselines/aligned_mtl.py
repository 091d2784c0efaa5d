"""Aligned-MTL: the tasks' gradients made orthogonal and of one length before they are averaged."""

import jax
import jax.numpy as jnp
import optax

from gems_jax.baselines.weighting import (
    Tasks,
    inverse_eigenvalues,
    relative_gramian,
    share_of_present,
    weighted,
)
from gems_jax.types import PyTree


def alignment(gramian: jax.Array) -> jax.Array:
    """``B = sqrt(lambda_min) M^(-1/2)``: the combinations of gradients whose Gramian is ``lambda_min I``.

    Args:
      gramian: ``M: [T, T]``; of deficient rank: the inverse and the smallest eigenvalue within its range.

    Returns:
      ``[T, T]``.

    Example:
      >>> import jax.numpy as jnp
      >>> alignment(jnp.array([[4.0, 0.0], [0.0, 1.0]])).round(3).tolist()
      [[0.5, 0.0], [0.0, 1.0]]
    """
    values, vectors = jnp.linalg.eigh(gramian)
    inverse_root, kept = inverse_eigenvalues(values, 0.5)
    smallest = jnp.min(jnp.where(kept, values, jnp.inf))
    scaled = jnp.where(kept, jnp.sqrt(jnp.where(jnp.isfinite(smallest), smallest, 0)) * inverse_root, 0)
    return vectors @ (scaled[:, None] * vectors.T)


def aligned(tasks: Tasks, state: PyTree) -> tuple[jax.Array, PyTree]:
    """The aligned gradients' mean, as weights of the tasks' own gradients."""
    gramian, _ = relative_gramian(tasks)
    return alignment(gramian) @ share_of_present(tasks.present), state


def aligned_mtl(
    inner_tx: optax.GradientTransformation, *, num_tasks: int | None = None
) -> optax.GradientTransformationExtraArgs:
    """Aligned gradients: the mean of the nearest gradients whose matrix has condition number 1.

    ``G = sum_t (B 1/T)_t g_t``, ``B = sqrt(lambda_min) V L^(-1/2) V^T`` from the Gramian ``V L V^T``: the principal
    components of the tasks' gradients, all given the smallest one's length (Senushkin et al., arXiv 2305.19000,
    section 4). In float32 a component shorter than about a thousandth of the longest is left out.

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
      >>> tx = aligned_mtl(optax.sgd(1.0))
      >>> updates, _ = tx.update(jnp.array([[4.0, 0.0], [0.0, 2.0]]), tx.init(params), params)
      >>> [round(x, 3) for x in updates.tolist()]
      [-1.0, -1.0]
    """
    return weighted("aligned_mtl", inner_tx, aligned, num_tasks=num_tasks)
