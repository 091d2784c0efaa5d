"""Uncertainty weighting: learned log-variances of the tasks."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from gems_jax.argument_checks import check_transform
from gems_jax.baselines.weighting import Tasks, weighted
from gems_jax.types import PyTree

# On log-variances: a loss that stays 0 would drive its weight to infinity.
_BOUND = 20.0


class UncertaintyState(NamedTuple):
    """``log_variances: [T]`` float32, and the state of their optimiser, ``[T, ...]``."""

    log_variances: jax.Array
    optimiser: PyTree


def uncertainty(
    inner_tx: optax.GradientTransformation,
    *,
    num_tasks: int,
    variance_tx: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Weights by learned uncertainty: minimises ``sum_t exp(-s_t) L_t + s_t / 2`` over the model and ``s``.

    ``s_t = log sigma_t^2`` starts at 0, so weights ``w_t = exp(-s_t)`` start at 1; at rest ``w_t = 1 / (2 L_t)``
    (Kendall, Gal, Cipolla, arXiv 1705.07115, equation 10, for cross entropies). ``s`` lives in the state and is
    trained there, within -20 and 20; the variance of a task that is absent from a step, or not finite, stays as it is.

    Args:
      inner_tx: optimiser of the merged gradient.
      num_tasks: ``T``.
      variance_tx: optimiser of ``s``, each task's on its own; ``None``: ``optax.adam(1e-3)``.

    Returns:
      A transform whose ``update(grads, state, params, task_losses, task_counts=None)`` takes leaves
      ``[T, *shape]`` (or ``[1, *shape]``) and returns ``[*shape]``. Counts only tell which tasks are absent.

    Raises:
      ValueError: ``num_tasks`` below 1; in ``update`` no ``task_losses``, or a leaf without its task axis.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> params = jnp.zeros(2)
      >>> tx = uncertainty(optax.sgd(1.0), num_tasks=2, variance_tx=optax.sgd(0.1))
      >>> updates, state = tx.update(jnp.eye(2), tx.init(params), params, task_losses=jnp.array([1.0, 0.5]))
      >>> updates.tolist(), [round(s, 3) for s in state.method.log_variances.tolist()]
      ([-1.0, -1.0], [0.05, 0.0])
    """
    # The task axis is a batch axis of this optimiser, so that a task's whole state can be kept as it was.
    trained_by = optax.adam(1e-3) if variance_tx is None else variance_tx
    check_transform("variance_tx", trained_by)

    def init() -> UncertaintyState:
        start = jnp.zeros((num_tasks,), jnp.float32)
        return UncertaintyState(start, jax.vmap(trained_by.init)(start))

    def weigh(tasks: Tasks, state: UncertaintyState) -> tuple[jax.Array, UncertaintyState]:
        assert tasks.losses is not None
        usable = tasks.present & jnp.isfinite(tasks.losses)
        weights = jnp.exp(-state.log_variances)
        # A single huge loss must not overflow the optimiser's second moment.
        slopes = jnp.where(usable, jnp.maximum(0.5 - weights * tasks.losses, -1e6), 0)
        steps, optimiser = jax.vmap(trained_by.update)(slopes, state.optimiser, state.log_variances)
        moved = UncertaintyState(jnp.clip(state.log_variances + steps, -_BOUND, _BOUND), optimiser)

        def keep(new: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where(usable.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

        return jnp.where(usable, weights, 0), jax.tree.map(keep, moved, state)

    return weighted("uncertainty", inner_tx, weigh, init, num_tasks=num_tasks, needs_losses=True)
