"""Nash-MTL: the gradient on which the tasks agree as bargainers."""

import jax
import jax.numpy as jnp
import optax

from gems_jax.baselines.weighting import Tasks, cosines, weighted
from gems_jax.types import PyTree

# Keeps the solution finite where tasks oppose each other exactly.
_RIDGE = 1e-6


def bargain(matrix: jax.Array, iterations: int = 40) -> jax.Array:
    """The positive solution of ``C b = 1 / b``.

    It minimises the self-concordant ``b^T C b / 2 - sum log b``, so that Newton steps of length
    ``1 / (1 + decrement)`` converge from anywhere.

    Args:
      matrix: ``[T, T]`` positive definite, diagonal of order 1.
      iterations: Newton steps.

    Returns:
      ``[T]``.

    Example:
      >>> import jax.numpy as jnp
      >>> bargain(jnp.array([[1.0, 0.0], [0.0, 4.0]])).round(3).tolist()
      [1.0, 0.5]
    """

    def step(b: jax.Array, _: None) -> tuple[jax.Array, None]:
        # In relative steps d = delta / b the barrier's Hessian is the identity: well conditioned.
        scaled = matrix * b * b[:, None]
        slope = jnp.sum(scaled, axis=1) - 1
        d = -jnp.linalg.solve(scaled + jnp.eye(b.shape[0], dtype=b.dtype), slope)
        decrement = jnp.sqrt(jnp.maximum(-slope @ d, 0))
        return b * (1 + d * jnp.where(decrement > 0.25, 1 / (1 + decrement), 1)), None

    start = jnp.full((matrix.shape[0],), matrix.shape[0] ** -0.5, matrix.dtype)
    return jax.lax.scan(step, start, None, length=iterations)[0]


def nash_mtl(
    inner_tx: optax.GradientTransformation, *, num_tasks: int | None = None
) -> optax.GradientTransformationExtraArgs:
    """Nash bargaining: ``G = sum_t a_t g_t`` with ``M a = 1 / a``, ``M`` the tasks' Gramian, ``a > 0``.

    The direction maximises ``sum_t log <g_t, d>`` (Navon et al., arXiv 2202.01017, section 3). ``<g_t, G>`` is
    ``1 / a_t > 0``: no conflict is left. Scaling a task's loss changes nothing; ``|G| = sqrt(T)``, so chain
    ``optax.clip_by_global_norm`` before ``inner_tx`` for another length.

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
      >>> tx = nash_mtl(optax.sgd(1.0))
      >>> updates, _ = tx.update(jnp.array([[9.0, 0.0], [0.0, 0.5]]), tx.init(params), params)
      >>> [round(x, 3) for x in updates.tolist()]
      [-1.0, -1.0]
    """

    def weigh(tasks: Tasks, state: PyTree) -> tuple[jax.Array, PyTree]:
        cosine, norms = cosines(tasks)
        # A task not present bargains alone: its own 1 on the diagonal, nothing beside it.
        alone = jnp.diag(jnp.where(tasks.present, _RIDGE, 1.0))
        return jnp.where(tasks.present, bargain(cosine + alone) / norms * tasks.scale, 0), state

    return weighted("nash_mtl", inner_tx, weigh, num_tasks=num_tasks)
