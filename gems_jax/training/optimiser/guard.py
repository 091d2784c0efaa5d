"""Updates that are not finite are refused, and it is known which task was to blame."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gems_jax.linalg.stacks import into_conditional
from gems_jax.transform.low_rank_gradient import is_low_rank, whole_shapes
from gems_jax.transform.state import work_dtype
from gems_jax.types import PyTree


class GuardState(NamedTuple):
    """State of `refuse_not_finite`.

    Attributes:
      finite: ``[T]`` bool, whether loss and gradient of each task were finite at the last update.
      inner: state of the wrapped transform.
    """

    finite: jax.Array
    inner: PyTree


def tasks_finite(losses: jax.Array, grads: PyTree) -> jax.Array:
    """``[T]`` bool: whether a task's loss and all of its gradient are finite.

    Args:
      losses: ``[T]``.
      grads: leaves ``[T, *shape]``.

    Example:
      >>> tasks_finite(jnp.ones(2), {"w": jnp.array([[1.0, 2.0], [jnp.inf, 0.0]])}).tolist()
      [True, False]
    """
    finite = jnp.isfinite(losses)
    nodes = jax.tree.leaves(grads, is_leaf=is_low_rank)
    for leaf in [x for node in nodes for x in (node.products() if is_low_rank(node) else [node])]:
        finite &= jnp.all(jnp.isfinite(leaf), axis=tuple(range(1, leaf.ndim)))
    return finite


def refuse_not_finite(tx: optax.GradientTransformation, num_tasks: int) -> optax.GradientTransformationExtraArgs:
    """Emits zeros and changes no state where a task's loss or gradient is not finite; updates are float32.

    As `gems_jax.apply_if_finite`, but losses count too, it says which task it was, and nothing is ever let through.

    Args:
      tx: takes gradients ``[T, *shape]`` and the tasks' losses.
      num_tasks: ``T``.

    Returns:
      A transform with the call of ``tx``; ``task_losses`` are needed.

    Example:
      >>> from gems_jax import merge_tasks
      >>> tx = refuse_not_finite(optax.chain(merge_tasks(), optax.sgd(1.0)), 2)
      >>> params = jnp.zeros(1)
      >>> updates, state = tx.update(jnp.array([[jnp.nan], [1.0]]), tx.init(params), params, task_losses=jnp.ones(2))
      >>> updates.tolist(), state.finite.tolist()
      ([0.0], [False, True])
    """
    tx = optax.with_extra_args_support(tx)

    def init_fn(params: PyTree) -> GuardState:
        return GuardState(jnp.ones((num_tasks,), bool), tx.init(params))

    def update_fn(
        updates: PyTree, state: GuardState, params: PyTree | None = None, *, task_losses: jax.Array, **extra: Any
    ) -> tuple[PyTree, GuardState]:
        finite = tasks_finite(task_losses, updates)

        operands, again = into_conditional(updates)

        def apply() -> tuple[PyTree, PyTree]:
            steps, inner = tx.update(again(operands), state.inner, params, task_losses=task_losses, **extra)
            return jax.tree.map(lambda u: u.astype(work_dtype(u.dtype)), steps), inner

        def refuse() -> tuple[PyTree, PyTree]:
            shapes = whole_shapes(updates, params)
            return jax.tree.map(lambda g: jnp.zeros(g.shape[1:], work_dtype(g.dtype)), shapes), state.inner

        steps, inner = jax.lax.cond(jnp.all(finite), apply, refuse)
        return steps, GuardState(finite, inner)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def last_finite(state: PyTree) -> jax.Array:
    """``finite`` of the `GuardState` in an optimiser state."""
    is_guard = lambda x: isinstance(x, GuardState)  # noqa: E731
    (guard,) = [x for x in jax.tree.leaves(state, is_leaf=is_guard) if is_guard(x)]
    return guard.finite
