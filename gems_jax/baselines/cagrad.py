"""CAGrad: near the mean gradient, best for the task that gains least."""

import jax
import jax.numpy as jnp
import optax

from gems_jax.argument_checks import check_number
from gems_jax.baselines.simplex import minimise_on_simplex
from gems_jax.baselines.weighting import Tasks, relative_gramian, share_of_present, weighted
from gems_jax.types import PyTree

# Of the mean squared norm: keeps the norm of a vanishing combination smooth in float32.
_SMOOTH = 1e-8


def cagrad(
    inner_tx: optax.GradientTransformation, *, c: float = 0.5, num_tasks: int | None = None
) -> optax.GradientTransformationExtraArgs:
    """Conflict-averse gradient: ``argmax_d min_t <g_t, d>`` subject to ``|d - g_0| <= c |g_0|``.

    ``g_0`` is the mean of the tasks' gradients. By duality ``d = g_0 + c |g_0| g_w / |g_w|``,
    ``g_w = sum_t w_t g_t`` with ``w`` minimising ``<g_w, g_0> + c |g_0| |g_w|`` over the simplex (Liu et al.,
    arXiv 2110.14048, section 3). ``c = 0`` is the mean of the gradients.

    Args:
      inner_tx: optimiser of the merged gradient.
      c: at least 0; the method's guarantee of convergence needs ``c < 1``.
      num_tasks: ``T``, to check the gradients against; ``None``: as they come.

    Returns:
      A transform whose ``update(grads, state, params, task_losses=None, task_counts=None)`` takes leaves
      ``[T, *shape]`` (or ``[1, *shape]``) and returns ``[*shape]``. Counts only tell which tasks are absent.

    Raises:
      ValueError: an argument out of range; in ``update`` a leaf without its task axis.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> params = jnp.zeros(2)
      >>> tx = cagrad(optax.sgd(1.0), c=0.5)
      >>> grads = jnp.array([[4.0, 0.0], [0.0, 4.0]])
      >>> [round(x, 3) for x in tx.update(grads, tx.init(params), params)[0].tolist()]
      [-3.0, -3.0]
    """
    check_number("c", c)
    if not c >= 0:
        raise ValueError(f"cagrad's c must be at least 0, got {c}")

    def weigh(tasks: Tasks, state: PyTree) -> tuple[jax.Array, PyTree]:
        gramian, _ = relative_gramian(tasks)
        mean = share_of_present(tasks.present)
        with_mean = gramian @ mean
        radius = c * jnp.sqrt(jnp.maximum(mean @ with_mean, 0))

        def derivatives(w: jax.Array) -> tuple[jax.Array, jax.Array]:
            along = gramian @ w
            norm = jnp.sqrt(jnp.maximum(w @ along, 0) + _SMOOTH)
            unit = along / norm
            return with_mean + radius * unit, radius * (gramian - jnp.outer(unit, unit)) / norm

        w = minimise_on_simplex(derivatives, tasks.present)
        norm = jnp.sqrt(jnp.maximum(w @ gramian @ w, 0) + _SMOOTH)
        return mean + radius / norm * w, state

    return weighted("cagrad", inner_tx, weigh, num_tasks=num_tasks)
