"""From stacked gradients to one weight a task, and from weights to one merged gradient."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gems_jax.argument_checks import check_transform, check_whole
from gems_jax.extra_arguments import check_extras
from gems_jax.leaf_path import named_leaves
from gems_jax.linalg.sizes import real_dtype, squares, task_peaks, to_one
from gems_jax.masked_leaves import tell_leaves, warn_of_stacked_leaves
from gems_jax.task_batch import check_per_task
from gems_jax.task_grads import check_task_axis, gramian, weighted_sum
from gems_jax.types import PyTree


class Tasks(NamedTuple):
    """The numbers that a method may look at in a step.

    Attributes:
      gramian: ``[T, T]`` float32 inner products of the tasks' gradients times ``scale``, over all leaves with a full
        task axis, zero in rows and columns of tasks that are not present.
      scale: ``[]`` the power of two that brings the largest gradient near 1: squares neither overflow nor vanish.
      present: ``[T]`` bool, tasks with tokens and a finite gradient other than 0.
      finite: ``[T]`` bool, tasks whose gradient is finite.
      losses: ``[T]`` float32, or ``None`` where not given.
      counts: ``[T]``, ones where not given; float32, or float64 where a gradient is.
    """

    gramian: jax.Array
    scale: jax.Array
    present: jax.Array
    finite: jax.Array
    losses: jax.Array | None
    counts: jax.Array


class WeightedState(NamedTuple):
    """State of a baseline.

    Attributes:
      method: arrays of the method itself, ``()`` where it keeps none.
      inner: state of the transform that takes the merged gradient.
    """

    method: PyTree
    inner: PyTree


Weigh = Callable[[Tasks, PyTree], tuple[jax.Array, PyTree]]


def merge(grads: PyTree, weights: jax.Array) -> PyTree:
    """``sum_t w_t G_t`` leaf by leaf, in the gradients' dtype.

    A leaf that was merged before stands for the gradient of every task: it is multiplied by ``sum_t w_t``, and
    left out where it is not finite.

    Args:
      grads: leaves ``[T, *shape]`` or ``[1, *shape]``.
      weights: ``[T]``; a task of weight 0 is left out even where it is not finite.

    Returns:
      Leaves ``[*shape]``.

    Example:
      >>> import jax.numpy as jnp
      >>> merge({"w": jnp.array([[1.0, 2.0], [3.0, jnp.nan]])}, jnp.array([2.0, 0.0]))["w"].tolist()
      [2.0, 4.0]
    """

    def one(g: jax.Array) -> jax.Array:
        if g.shape[0] == weights.shape[0]:
            return weighted_sum(g, weights).astype(g.dtype)
        wide = _wide(g[0])
        wide = jnp.where(jnp.all(jnp.isfinite(wide)), wide, 0) * jnp.sum(weights).astype(wide.dtype)
        return wide.astype(g.dtype)

    return jax.tree.map(one, grads)


def weighted(
    name: str,
    inner_tx: optax.GradientTransformation,
    weigh: Weigh,
    init: Callable[[], PyTree] = lambda: (),
    *,
    num_tasks: int | None = None,
    needs_losses: bool = False,
    takes_shared: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """A transform that gives ``inner_tx`` the gradient ``sum_t w_t G_t``.

    Args:
      name: of the method, for messages.
      inner_tx: optimiser of the merged gradient.
      weigh: ``weigh(tasks, state) -> (weights [T], state)``, see `Tasks`.
      init: gives the method's first state.
      num_tasks: ``T``; ``None``: the gradients' own leading axis.
      needs_losses: whether the method cannot do without ``task_losses``.
      takes_shared: whether ``shared_grads`` may replace the weighted sum.

    Returns:
      The transform. Weights of tasks that are not finite are set to 0; other extra arguments reach ``inner_tx``.

    Raises:
      ValueError: here, ``num_tasks`` below 1; in ``update``, a leaf without its task axis (names the leaf), or
        ``task_losses`` or ``task_counts`` missing or of another shape, ``shared_grads`` where the method has no use
        for it.
      TypeError: an argument of another type, named.
    """
    check_transform("inner_tx", inner_tx)
    if num_tasks is not None:
        check_whole("num_tasks", num_tasks)
    if num_tasks is not None and num_tasks < 1:
        raise ValueError(f"num_tasks must be at least 1, got {num_tasks}")
    inner = optax.with_extra_args_support(inner_tx)

    def init_fn(params: PyTree) -> WeightedState:
        tell_leaves(params)
        return WeightedState(init(), inner.init(params))

    def update_fn(
        updates: PyTree,
        state: WeightedState,
        params: PyTree | None = None,
        *,
        task_losses: jax.Array | None = None,
        task_counts: jax.Array | None = None,
        shared_grads: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, WeightedState]:
        check_extras(extra_args)
        tasks_in = _checked_num_tasks(updates, params, num_tasks)
        warn_of_stacked_leaves(updates, name)
        if needs_losses and task_losses is None:
            raise ValueError(f"{name} needs task_losses: call update(..., task_losses=array of [{tasks_in}])")
        if shared_grads is not None and not takes_shared:
            raise ValueError(f"{name} weighs the tasks' gradients itself: leave shared_grads out")
        updates = jax.tree.map(jnp.asarray, updates)
        dtype = real_dtype(leaf.dtype for leaf in jax.tree.leaves(updates))
        tasks = _look(
            jax.tree.leaves(updates),
            tasks_in,
            _per_task("task_losses", task_losses, tasks_in, jnp.float32),
            _per_task("task_counts", task_counts, tasks_in, dtype),
        )
        weights, method = weigh(tasks, state.method)
        weights = jnp.where(tasks.finite & jnp.isfinite(weights), weights, 0).astype(dtype)
        merged = merge(updates, weights) if shared_grads is None else shared_grads
        steps, inner_state = inner.update(merged, state.inner, params, **extra_args)
        return steps, WeightedState(method, inner_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _checked_num_tasks(grads: PyTree, params: PyTree | None, num_tasks: int | None) -> int:
    if params is not None:
        check_task_axis(grads, params, num_tasks)
    leaves = named_leaves(grads)
    for path, leaf in leaves:
        if jnp.ndim(leaf) < 1:
            raise ValueError(
                f"gradient leaf {path!r} is a scalar, expected a leading task axis [T, ...], as "
                "gems_jax.task_value_and_grad returns it"
            )
    largest = num_tasks or max((leaf.shape[0] for _, leaf in leaves), default=1)
    for path, leaf in leaves:
        if leaf.shape[0] not in (1, largest):
            raise ValueError(
                f"gradient leaf {path!r} has shape {list(leaf.shape)}, expected {largest} tasks (or 1 "
                "where already merged) in its leading axis"
            )
    return largest


def _per_task(name: str, value: jax.Array | None, num_tasks: int, dtype: Any) -> jax.Array | None:
    if value is None:
        return None
    check_per_task(name, value, num_tasks)
    return jnp.asarray(value, dtype)


def _look(leaves: list[jax.Array], num_tasks: int, losses: jax.Array | None, counts: jax.Array | None) -> Tasks:
    stacked = [g for g in leaves if g.shape[0] == num_tasks]
    if not stacked:  # everything was merged before: one gradient for all tasks
        stacked = [jnp.broadcast_to(g, (num_tasks, *g.shape[1:])) for g in leaves]
    # Not the Gramian's diagonal: methods that do not look at the Gramian should not pay for it.
    stacked = [_wide(g) for g in stacked]
    peaks = task_peaks(stacked, num_tasks)
    counts = jnp.ones((num_tasks,), jnp.float32) if counts is None else counts
    finite = jnp.isfinite(peaks)
    scale = to_one(jnp.max(jnp.where(finite, peaks, 0)))
    scaled = [g * scale.astype(g.dtype) for g in stacked]
    sizes = sum((squares(g, g.ndim - 1) for g in scaled), jnp.zeros((num_tasks,), peaks.dtype))
    finite &= ~jnp.isnan(sizes)  # of which a largest entry does not tell
    # Beside a gradient of 1e20 times its size one has no square: it cannot be weighed, only left out.
    present = finite & (sizes > 0) & (counts > 0)
    products = jnp.where(present[:, None] & present, gramian(scaled, num_tasks), 0)
    return Tasks(products, scale.astype(jnp.float32), present, finite, losses, counts)


def share_of_present(present: jax.Array) -> jax.Array:
    """``[T]`` float32: ``1 / (number present)`` for tasks that are present, 0 for others."""
    return present / jnp.maximum(jnp.sum(present), 1).astype(jnp.float32)


def relative_gramian(tasks: Tasks) -> tuple[jax.Array, jax.Array]:
    """The Gramian divided by the mean of its diagonal over present tasks, and that mean (1 if there are none)."""
    mean = jnp.sum(jnp.diagonal(tasks.gramian) * share_of_present(tasks.present))
    mean = jnp.where(mean > 0, mean, 1)
    return tasks.gramian / mean, mean


def cosines(tasks: Tasks) -> tuple[jax.Array, jax.Array]:
    """Cosines ``[T, T]`` of the tasks' gradients, and their norms times the scale; 0 and 1 for tasks not present."""
    norms = jnp.sqrt(jnp.where(tasks.present, jnp.diagonal(tasks.gramian), 1))
    return tasks.gramian / norms / norms[:, None], norms


def inverse_eigenvalues(values: jax.Array, power: float) -> tuple[jax.Array, jax.Array]:
    """``values ** -power`` where above rounding of the largest, else 0, and which those are."""
    kept = values > jnp.finfo(values.dtype).eps * values.shape[0] * jnp.max(values)
    return jnp.where(kept, jnp.where(kept, values, 1) ** -power, 0), kept
