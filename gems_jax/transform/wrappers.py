"""Gradient accumulation and a guard against non-finite gradients, for transforms that merge a task axis.

optax's own wrappers expect updates of the gradients' shape; here gradients are ``[T, *shape]`` and updates
``[*shape]``.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gems_jax.argument_checks import check_transform, check_whole
from gems_jax.boxes import unboxed
from gems_jax.extra_arguments import check_extras
from gems_jax.linalg.sizes import real_dtype
from gems_jax.linalg.stacks import into_conditional, tasks_lie_first
from gems_jax.task_batch import check_per_task
from gems_jax.task_grads import check_task_axis
from gems_jax.transform.state import gems_states, work_dtype
from gems_jax.types import PyTree


class AccumulateState(NamedTuple):
    """State of `accumulate`.

    Attributes:
      micro_step: ``[]`` int32, micro-batches gathered since the last update.
      gradients: ``[T, *shape]`` float32 sums of count times gradient, in a tree like the unboxed parameters.
      losses: ``[T]`` sums of count times loss.
      counts: ``[T]`` sums of counts.
      inner: state of the wrapped transform.
    """

    micro_step: jax.Array
    gradients: PyTree
    losses: jax.Array
    counts: jax.Array
    inner: PyTree


class ApplyIfFiniteState(NamedTuple):
    """State of `apply_if_finite`: consecutive and all refused steps, whether the last was finite, inner state."""

    consecutive: jax.Array
    total: jax.Array
    last_finite: jax.Array
    inner: PyTree


def _update_shapes(tx: Any, grads: PyTree, state: PyTree, params: PyTree, extra: dict[str, Any]) -> PyTree:
    return jax.eval_shape(lambda g, s, p, e: tx.update(g, s, p, **e)[0], grads, state, params, extra)


def accumulate(
    tx: optax.GradientTransformation, k: int, num_tasks: int | None = None
) -> optax.GradientTransformationExtraArgs:
    """Gathers ``k`` micro-batches into one update of a transform that takes per-task gradients.

    ``G_t = sum_i c_ti G_ti / sum_i c_ti`` over micro-batches ``i`` with counts ``c_ti``, losses alike, and
    counts are summed: the update is that of one batch of ``k`` times the size. Between updates it emits zeros
    and leaves the wrapped state alone, so that refreshes count updates, not micro-batches.

    Args:
      tx: `gems`, a chain that starts with it or with `merge_tasks`.
      k: micro-batches an update.
      num_tasks: ``T``; may be left out where ``tx`` contains `gems`.

    Returns:
      A transform with the call of `gems`; ``shared_grads`` cannot be accumulated.

    Raises:
      ValueError: ``k`` below 1; an unknown number of tasks; a leaf without its task axis; losses or counts of another
        number of tasks.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from gems_jax import merge_tasks
      >>> tx = accumulate(optax.chain(merge_tasks(), optax.sgd(1.0)), k=2, num_tasks=1)
      >>> params = jnp.zeros(1)
      >>> state = tx.init(params)
      >>> first, state = tx.update(jnp.array([[1.0]]), state, params, task_counts=jnp.array([3]))
      >>> second, state = tx.update(jnp.array([[5.0]]), state, params, task_counts=jnp.array([1]))
      >>> first.tolist(), second.tolist()
      ([0.0], [-2.0])
    """
    check_transform("tx", tx)
    check_whole("k", k, 1, "the number of micro-batches an update")
    if num_tasks is not None:
        check_whole("num_tasks", num_tasks, 1)
    tx = optax.with_extra_args_support(tx)

    def init_fn(params: PyTree) -> AccumulateState:
        inner = tx.init(params)
        tasks = num_tasks or next((len(state.diagnostics.gates) for state in gems_states(inner)), None)
        if tasks is None:
            raise ValueError("the wrapped transform contains no gems: give accumulate(tx, k, num_tasks=...)")
        dtype = real_dtype(leaf.dtype for leaf in jax.tree.leaves(params))
        return AccumulateState(
            micro_step=jnp.zeros((), jnp.int32),
            gradients=jax.tree.map(lambda p: jnp.zeros((tasks, *p.shape), work_dtype(p.dtype)), unboxed(params)),
            losses=jnp.zeros((tasks,), dtype),
            counts=jnp.zeros((tasks,), dtype),
            inner=inner,
        )

    def update_fn(
        updates: PyTree,
        state: AccumulateState,
        params: PyTree | None = None,
        *,
        task_losses: jax.Array | None = None,
        task_counts: jax.Array | None = None,
        shared_grads: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, AccumulateState]:
        if params is None:
            raise ValueError("accumulate needs the parameters: call update(grads, state, params)")
        check_extras(extra_args)
        if shared_grads is not None:
            raise ValueError("shared_grads cannot be accumulated; leave it out, or accumulate it before the call")
        tasks, dtype = state.counts.shape[0], state.counts.dtype
        check_task_axis(updates, params, tasks)
        for name, value in (("task_losses", task_losses), ("task_counts", task_counts)):
            if value is not None:
                check_per_task(name, value, tasks)
        counts = jnp.ones((tasks,), dtype) if task_counts is None else jnp.asarray(task_counts, dtype)

        def add(total: jax.Array, gradient: jax.Array) -> jax.Array:
            gradient = gradient.astype(total.dtype)
            if gradient.shape[0] != tasks:  # merged already: one gradient for all tasks' tokens, kept in row 0
                return total.at[0].add(jnp.sum(counts).astype(total.dtype) * gradient[0])
            weights = counts.astype(total.dtype).reshape(-1, *(1,) * (gradient.ndim - 1))
            return total + jnp.where(weights > 0, weights * gradient, 0)

        given = jax.tree.leaves(updates)
        totals = [add(*pair) for pair in zip(jax.tree.leaves(state.gradients), given, strict=True)]
        gradients = jax.tree.unflatten(jax.tree.structure(state.gradients), totals)
        counted = state.counts + counts
        losses = state.losses
        if task_losses is not None:
            losses = losses + jnp.where(counts > 0, counts * jnp.asarray(task_losses, dtype), 0)

        def mean(total: jax.Array, given: jax.Array) -> jax.Array:
            weights = counted.astype(total.dtype)
            if given.shape[0] != tasks:
                total, weights = total[:1], jnp.sum(weights)[None]
            weights = weights.reshape(-1, *(1,) * (total.ndim - 1))
            return total / jnp.where(weights > 0, weights, 1)

        extra = dict(extra_args)
        if task_counts is not None:
            extra["task_counts"] = counted
        if task_losses is not None:
            extra["task_losses"] = losses / jnp.where(counted > 0, counted, 1)
        means = jax.tree.unflatten(jax.tree.structure(updates), list(map(mean, totals, given)))
        shapes = _update_shapes(tx, means, state.inner, params, extra)

        def emit(_: None) -> tuple[PyTree, AccumulateState]:
            with tasks_lie_first():
                steps, inner = tx.update(means, state.inner, params, **extra)
            empty = jax.tree.map(jnp.zeros_like, gradients)
            zeros = jnp.zeros_like(counted)
            return steps, AccumulateState(jnp.zeros((), jnp.int32), empty, zeros, zeros, inner)

        def wait(_: None) -> tuple[PyTree, AccumulateState]:
            zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
            return zeros, AccumulateState(state.micro_step + 1, gradients, losses, counted, state.inner)

        return jax.lax.cond(state.micro_step + 1 >= k, emit, wait, None)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def apply_if_finite(
    tx: optax.GradientTransformation, max_consecutive_errors: int
) -> optax.GradientTransformationExtraArgs:
    """Refuses steps whose gradients are not finite: zeros are emitted and no state changes.

    As ``optax.apply_if_finite``, for transforms that merge a task axis. After ``max_consecutive_errors``
    refusals in a row the next step is let through, so that the error is seen. (`gems` by itself already leaves
    out a single task whose gradient is not finite.)

    Args:
      tx: the transform.
      max_consecutive_errors: at least 0.

    Returns:
      A transform with the call of ``tx``.

    Raises:
      ValueError: a negative number.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from gems_jax import merge_tasks
      >>> tx = apply_if_finite(optax.chain(merge_tasks(), optax.sgd(1.0)), 3)
      >>> params = jnp.zeros(1)
      >>> updates, state = tx.update(jnp.array([[jnp.nan], [1.0]]), tx.init(params), params)
      >>> updates.tolist(), int(state.total)
      ([0.0], 1)
    """
    check_transform("tx", tx)
    check_whole("max_consecutive_errors", max_consecutive_errors, 0)
    tx = optax.with_extra_args_support(tx)

    def init_fn(params: PyTree) -> ApplyIfFiniteState:
        zero = lambda: jnp.zeros((), jnp.int32)  # noqa: E731, a buffer each: states are donated
        return ApplyIfFiniteState(zero(), zero(), jnp.asarray(True), tx.init(params))

    def update_fn(
        updates: PyTree, state: ApplyIfFiniteState, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, ApplyIfFiniteState]:
        finite = jnp.asarray(True)
        for leaf in jax.tree.leaves(updates):
            finite &= jnp.all(jnp.isfinite(leaf))
        consecutive = jnp.where(finite, 0, optax.safe_increment(state.consecutive))
        total = jnp.where(finite, state.total, optax.safe_increment(state.total))
        shapes = _update_shapes(tx, updates, state.inner, params, extra_args)

        operands, again = into_conditional(updates)

        def apply(_: None) -> tuple[PyTree, PyTree]:
            return tx.update(again(operands), state.inner, params, **extra_args)

        def refuse(_: None) -> tuple[PyTree, PyTree]:
            return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes), state.inner

        steps, inner = jax.lax.cond(finite | (consecutive > max_consecutive_errors), apply, refuse, None)
        return steps, ApplyIfFiniteState(consecutive, total, finite, inner)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
