"""A gradient for every task, and the ways to merge the task axis."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gems_jax.argument_checks import check_flag, check_function, check_whole
from gems_jax.extra_arguments import check_extras
from gems_jax.leaf_path import named_leaves
from gems_jax.masked_leaves import tell_leaves, warn_of_stacked_leaves
from gems_jax.task_batch import check_per_task, check_tasks, telling_leaves
from gems_jax.types import PyTree


def token_mean(losses: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean of per-token losses over the tokens of a mask, safe where there are none.

    ``sum(losses * mask) / max(sum(mask), 1)``; without tokens the value and the gradient are 0.

    Args:
      losses: ``[...]`` a loss per token, any float dtype.
      mask: ``[...]`` of the same shape, 1 (or a weight) for tokens that count, 0 for padding.

    Returns:
      The mean, a float32 scalar (float64 for float64 losses).

    Example:
      >>> import jax.numpy as jnp
      >>> float(token_mean(jnp.array([1.0, 3.0, 100.0]), jnp.array([1, 1, 0])))
      2.0
    """
    dtype = jnp.promote_types(losses.dtype, jnp.float32)
    weights = mask.astype(dtype)
    total = jnp.sum(jnp.where(weights != 0, losses.astype(dtype), 0) * weights)
    count = jnp.sum(weights)
    return total / jnp.where(count > 0, count, 1)


def task_value_and_grad(
    loss_fn: Callable[..., Any],
    has_aux: bool = False,
    chunk_size: int | None = None,
    spmd_axis_name: str | None = None,
) -> Callable[[PyTree, PyTree], tuple[Any, PyTree]]:
    """Losses and gradients of all tasks in one pass, parameters shared.

    ``losses[t], G_t = value_and_grad(loss_fn)(params, task_batch[t])`` by ``jax.vmap`` over the leading task
    axis of the batch (GEMS, arXiv 2601.09496, section 3: one gradient per task).

    Args:
      loss_fn: ``loss_fn(params, batch) -> scalar``, or ``(scalar, aux)`` with ``has_aux``; batch leaves are
        ``[B, ...]``. A task of few rows is padded and masked inside the loss, see `token_mean`.
      has_aux: whether ``loss_fn`` returns a pair.
      chunk_size: tasks differentiated at a time; fewer need less memory and more time. ``None``: all.
      spmd_axis_name: mesh axis over which the task axis is laid out.

    Returns:
      ``fn(params, task_batch)`` with batch leaves ``[T, B, ...]`` giving ``(losses, grads)``: losses ``[T]``
      float32, grads a tree like ``params`` with leaves ``[T, *param.shape]``; with ``has_aux``
      ``((losses, aux), grads)``, aux leaves ``[T, ...]``.

    Raises:
      ValueError: batch leaves disagree on the number of tasks, or a leaf has no task axis or no numbers (names the
        leaf); ``loss_fn`` fails on one task's batch, of which a leaf is a scalar.

    Example:
      >>> import jax.numpy as jnp
      >>> loss = lambda w, batch: jnp.mean((batch["x"] @ w - batch["y"]) ** 2)
      >>> batch = {"x": jnp.ones((2, 4, 3)), "y": jnp.array([[1.0] * 4, [2.0] * 4])}
      >>> losses, grads = task_value_and_grad(loss)(jnp.zeros(3), batch)
      >>> losses.tolist(), grads.shape
      ([1.0, 4.0], (2, 3))
    """
    check_function("loss_fn", loss_fn, "a function (params, batch) -> scalar")
    check_flag("has_aux", has_aux)
    if chunk_size is not None:
        check_whole("chunk_size", chunk_size, 1, "the number of tasks per pass")
    value_and_grad = jax.value_and_grad(loss_fn, has_aux=has_aux)

    def fn(params: PyTree, task_batch: PyTree) -> tuple[Any, PyTree]:
        num_tasks = check_tasks(task_batch)
        with telling_leaves(task_batch):
            if chunk_size is None or chunk_size >= num_tasks:
                mapped = jax.vmap(value_and_grad, in_axes=(None, 0), spmd_axis_name=spmd_axis_name)
                value, grads = mapped(params, task_batch)
            else:
                one = functools.partial(value_and_grad, params)
                value, grads = jax.lax.map(one, task_batch, batch_size=chunk_size)
        losses, aux = value if has_aux else (value, None)
        losses = losses.astype(jnp.promote_types(losses.dtype, jnp.float32))
        return ((losses, aux) if has_aux else losses), grads

    return fn


def task_weights(counts: jax.Array | None, num_tasks: int, dtype: Any = jnp.float32) -> jax.Array:
    """Weights that turn per-task means into the mean over the joined batch.

    ``w_t = count_t / sum(count)``; equal when there are no counts or they sum to 0.

    Args:
      counts: ``[T]`` what each task's loss was averaged over (label tokens), or ``None``.
      num_tasks: ``T``.
      dtype: least precision of the weights, that of the gradients they are for.

    Returns:
      ``[T]`` of this dtype (float64 for such counts), sum 1.

    Raises:
      ValueError: there are not as many counts as tasks; for one task, whose gradients may have been merged, any number.

    Example:
      >>> import jax.numpy as jnp
      >>> task_weights(jnp.array([3, 1]), 2).tolist()
      [0.75, 0.25]
    """
    equal = jnp.full((num_tasks,), 1 / num_tasks, dtype)
    if counts is None:
        return equal
    counts = jnp.asarray(counts)
    if num_tasks > 1 or counts.ndim != 1:
        check_per_task("task_counts", counts, num_tasks)
    counts = counts.astype(jnp.promote_types(counts.dtype, dtype))
    total = jnp.sum(counts)
    return jnp.where(total > 0, counts / jnp.where(total > 0, total, 1), equal)


def weighted_sum(grad: jax.Array, weights: jax.Array) -> jax.Array:
    """``sum_t w_t G_t`` in float32 (float64 stays), tasks of weight 0 left out even where not finite.

    Args:
      grad: ``[T, ...]``, or ``[1, ...]`` where already merged: then the single entry.
      weights: ``[T]``.

    Returns:
      ``[...]``.
    """
    grad = grad.astype(jnp.promote_types(grad.dtype, jnp.float32))
    if grad.shape[0] != weights.shape[0]:
        return grad[0]
    weights = weights.astype(grad.dtype)
    # Written out: XLA's CPU reduction over a short leading axis is some hundred times slower than these sums.
    terms = [jnp.where(w != 0, g, 0) * w for w, g in zip(weights, grad, strict=True)]
    return functools.reduce(jnp.add, terms)


def inner_products(grads: Sequence[jax.Array], num_tasks: int) -> jax.Array:
    """``<G_s, G_t>`` of all pairs of tasks, of arrays ``[T, ...]`` together: ``[T, T]``, float32 or wider.

    Complex gradients give the real part, so that the product of a task with itself is its squared norm.

    Example:
      >>> inner_products([jnp.array([[1.0, 2.0], [0.0, 1.0]]), jnp.array([1.0, 3.0])], 2).tolist()
      [[6.0, 5.0], [5.0, 10.0]]
    """
    wide = [grad.astype(jnp.promote_types(grad.dtype, jnp.float32)) for grad in grads]
    parts = [part for g in wide for part in ([g.real, g.imag] if jnp.iscomplexobj(g) else [g])]
    if num_tasks > 4:
        axes = [tuple(range(1, g.ndim)) for g in parts]
        products = [
            jnp.tensordot(g, g, (a, a), precision=jax.lax.Precision.HIGHEST) for g, a in zip(parts, axes, strict=True)
        ]
        return functools.reduce(jnp.add, products, jnp.zeros((num_tasks, num_tasks), jnp.float32))
    # Few tasks: reductions at the speed of memory, where a product of such flat matrices is slow.
    rows = [list(g) for g in parts]

    def of_pair(s: int, t: int) -> jax.Array:
        return functools.reduce(jnp.add, [jnp.sum(row[s] * row[t]) for row in rows], jnp.zeros((), jnp.float32))

    pairs = {(s, t): of_pair(s, t) for s in range(num_tasks) for t in range(s + 1)}
    entries = [pairs[max(s, t), min(s, t)] for s in range(num_tasks) for t in range(num_tasks)]
    return jnp.stack(entries).reshape(num_tasks, num_tasks)


def gramian(leaves: Sequence[jax.Array], num_tasks: int) -> jax.Array:
    """`inner_products` of leaves ``[T, ...]`` in float32.

    Example:
      >>> import jax.numpy as jnp
      >>> gramian([jnp.array([[1.0, 2.0], [0.0, 1.0]]), jnp.array([1.0, 3.0])], 2).tolist()
      [[6.0, 5.0], [5.0, 10.0]]
    """
    return inner_products(leaves, num_tasks).astype(jnp.float32)


class MergeTasksState(NamedTuple):
    """`merge_tasks` keeps nothing."""


def merge_tasks() -> optax.GradientTransformationExtraArgs:
    """Merges the task axis: makes any optax transform usable on stacked gradients.

    ``G = sum_t w_t G_t`` with ``w_t = count_t / sum(count)``: the gradient of the mean over all tasks' tokens.
    First in a chain, or beside `gems` in ``optax.partition``.

    Returns:
      A transform whose ``update(grads, state, params, task_counts=None)`` takes leaves ``[T, *shape]`` (or
      ``[1, *shape]``) and returns ``[*shape]`` in the gradients' dtype. Further extra arguments are ignored.

    Raises:
      ValueError: a leaf has no task axis, by comparison with ``params`` where they are given, or there are not as many
        counts as tasks.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> tx = optax.chain(merge_tasks(), optax.sgd(1.0))
      >>> grads = {"w": jnp.array([[1.0, 1.0], [5.0, 5.0]])}
      >>> params = {"w": jnp.zeros(2)}
      >>> tx.update(grads, tx.init(params), params, task_counts=jnp.array([3, 1]))[0]["w"].tolist()
      [-2.0, -2.0]
    """

    def init_fn(params: PyTree) -> MergeTasksState:
        tell_leaves(params)
        return MergeTasksState()

    def update_fn(
        updates: PyTree,
        state: MergeTasksState,
        params: PyTree | None = None,
        *,
        task_counts: jax.Array | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, MergeTasksState]:
        check_extras(extra_args)
        warn_of_stacked_leaves(updates, "merge_tasks")
        if params is not None:
            check_task_axis(updates, params)
        updates = jax.tree.map(jnp.asarray, updates)
        num_tasks = max((leaf.shape[0] for leaf in jax.tree.leaves(updates)), default=1)
        widest = jnp.result_type(jnp.float32, *(leaf.real.dtype for leaf in jax.tree.leaves(updates)))
        weights = task_weights(task_counts, num_tasks, widest)
        merged = jax.tree.map(lambda g: weighted_sum(g, weights).astype(g.dtype), updates)
        return merged, state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def check_task_axis(grads: PyTree, params: PyTree, num_tasks: int | None = None) -> None:
    """Raises ``ValueError`` naming the first gradient leaf that is not ``[T, *shape]`` or ``[1, *shape]``."""
    leaves = named_leaves(grads)
    shapes = [jnp.shape(p) for p in jax.tree.leaves(params)]
    if len(leaves) != len(shapes):
        raise ValueError(
            f"gradients have {len(leaves)} leaves, parameters {len(shapes)}; pass matching trees (gradients of "
            "projected_task_grads are for gems alone; to accumulate them, give projected_task_grads accumulate=)"
        )
    for (path, grad), shape in zip(leaves, shapes, strict=True):
        expected = f"[{num_tasks or 'T'}, {', '.join(map(str, shape))}]"
        if jnp.ndim(grad) != len(shape) + 1 or jnp.shape(grad)[1:] != shape:
            raise ValueError(
                f"gradient leaf {path!r} has shape {list(jnp.shape(grad))}, expected {expected}: "
                "a leading task axis, as gems_jax.task_value_and_grad returns it (or [1, ...] if merged)"
            )
        if num_tasks is not None and jnp.shape(grad)[0] not in (1, num_tasks):
            raise ValueError(
                f"gradient leaf {path!r} has {jnp.shape(grad)[0]} tasks, expected {num_tasks} "
                "(num_tasks) or 1 where already merged"
            )
