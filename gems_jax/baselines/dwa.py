"""Dynamic weight average: more weight where the loss falls slowly."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from gems_jax.argument_checks import check_number, check_whole
from gems_jax.baselines.weighting import Tasks, weighted


class DwaState(NamedTuple):
    """Losses of each task, ``[T]`` each.

    Attributes:
      total: sum over the present window.
      seen: int32, steps in the present window.
      latest: mean over the last full window, 0 before there is one.
      before: mean over the window before, 0 before there is one.
    """

    total: jax.Array
    seen: jax.Array
    latest: jax.Array
    before: jax.Array


def dwa(
    inner_tx: optax.GradientTransformation,
    *,
    num_tasks: int,
    temperature: float = 2.0,
    window: int = 1,
) -> optax.GradientTransformationExtraArgs:
    """Dynamic weight average: ``w_t = T softmax_t(r_t / temperature)``, ``r_t = L_t(k - 1) / L_t(k - 2)``.

    ``L_t(k)`` is the mean loss in window ``k``; weights are 1 until there are two (Liu, Johns, Davison, arXiv
    1803.10704, equation 7, where a window is an epoch). A window counts the steps in which a task takes part,
    and ``T`` those that take part in a step.

    Args:
      inner_tx: optimiser of the merged gradient.
      num_tasks: ``T``.
      temperature: above 0; a large one makes the weights equal.
      window: steps over which losses are averaged, at least 1.

    Returns:
      A transform whose ``update(grads, state, params, task_losses, task_counts=None)`` takes leaves
      ``[T, *shape]`` (or ``[1, *shape]``) and returns ``[*shape]``. Counts only tell which tasks are absent.

    Raises:
      ValueError: an argument out of range; in ``update`` no ``task_losses``, or a leaf without its task axis.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> params = jnp.zeros(2)
      >>> tx = dwa(optax.sgd(1.0), num_tasks=2)
      >>> state = tx.init(params)
      >>> for losses in ([4.0, 4.0], [4.0, 2.0], [1.0, 1.0]):        # the second task learns faster
      ...     updates, state = tx.update(jnp.eye(2), state, params, task_losses=jnp.array(losses))
      >>> [round(x, 3) for x in updates.tolist()]
      [-1.124, -0.876]
    """
    check_number("temperature", temperature)
    check_whole("window", window)
    if not temperature > 0 or window < 1:
        raise ValueError(f"dwa needs temperature > 0 and window >= 1, got temperature={temperature}, window={window}")

    def init() -> DwaState:
        zeros = lambda dtype=jnp.float32: jnp.zeros((num_tasks,), dtype)  # noqa: E731, a buffer each: states are donated
        return DwaState(zeros(), zeros(jnp.int32), zeros(), zeros())

    def weigh(tasks: Tasks, state: DwaState) -> tuple[jax.Array, DwaState]:
        assert tasks.losses is not None
        usable = tasks.present & jnp.isfinite(tasks.losses)
        known = (state.latest > 0) & (state.before > 0)
        ratios = jnp.where(known, state.latest / jnp.where(known, state.before, 1), 1)
        scores = jnp.where(usable, jnp.minimum(ratios, 1e30) / temperature, -jnp.inf)
        weights = jnp.sum(usable) * jax.nn.softmax(scores)
        total = state.total + jnp.where(usable, tasks.losses, 0)
        seen = state.seen + usable
        full = seen >= window
        mean = total / jnp.maximum(seen, 1)
        state = DwaState(
            total=jnp.where(full, 0, total),
            seen=jnp.where(full, 0, seen),
            latest=jnp.where(full, mean, state.latest),
            before=jnp.where(full, state.latest, state.before),
        )
        return jnp.where(usable, weights, 0), state

    return weighted("dwa", inner_tx, weigh, init, num_tasks=num_tasks, needs_losses=True)
