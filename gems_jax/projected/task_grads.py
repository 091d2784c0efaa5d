"""Low-rank gradients of all tasks, for `gems`: its bases are multiplied with inside the model's own program."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gems_jax.argument_checks import check_flag, check_function, check_transform
from gems_jax.leaf_path import named_leaves
from gems_jax.projected.model_passes import Model
from gems_jax.projected.served import find_served
from gems_jax.projected.step_gradients import gradients
from gems_jax.task_batch import check_leaves
from gems_jax.transform.state import work_dtype
from gems_jax.types import PyTree
from gems_jax.whole_number import is_whole


def projected_task_grads(
    loss_fn: Callable[[PyTree, PyTree], Any],
    tx: Any,
    has_aux: bool = False,
    spmd_axis_name: str | None = None,
    accumulate: int = 1,
) -> Callable[..., tuple[Any, PyTree]]:
    """Losses and low-rank gradients of all tasks in one pass; no kernel's gradient is ever formed.

    ``L_b = U_b^T G_t``, for a kernel in ``y = x W`` as ``(x U_b)^T dy`` or ``x^T (dy V_b)`` (METHOD.md, section 11):
    what `gems` needs of ``G_t`` between refreshes, for a fraction of the operations, and nothing of a kernel's size is
    written or sent between devices. A refresh takes passes more: ``U <- N G (G^T U)`` by the same products. ``loss_fn``
    is any JAX model, unchanged: the products are found in its program, through scans, recomputation and jit. Kernels
    that cannot be served take the way of `task_value_and_grad`; `projection_plan` lists them.

    Norms and inner products of whole gradients (gates, diagnostics) are exact inside the shared basis and estimated
    without bias outside it, from 8 random columns. Under ``decomposition="auto"`` refreshes are power iterations.

    Args:
      loss_fn: ``loss_fn(params, batch) -> scalar``, or ``(scalar, aux)`` with ``has_aux``, as for
        `task_value_and_grad`.
      tx: `gems`, or a chain, partition or wrapper that contains it.
      has_aux: whether ``loss_fn`` returns a pair.
      spmd_axis_name: mesh axis over which the task axis is laid out.
      accumulate: ``A``, parts that a batch is cut into and computed one after the other, for less memory. Losses and
        gradients are means over the parts, weighted by each task's counts, as `gems_jax.accumulate` weighs them.

    Returns:
      ``fn(params, opt_state, task_batch, task_counts=None)`` with batch leaves ``[T, B, ...]`` giving ``(losses,
      grads)``: losses ``[T]`` float32, ``grads`` a tree like ``params`` that ``tx.update`` takes like others, with
      ``[T, *shape]`` or a `LowRankGradient` in the place of a leaf; with ``has_aux`` ``((losses, aux), grads)``.
      ``task_counts``: ``[T]``, the same that ``tx.update`` is given. With ``accumulate`` above 1 batch leaves are
      ``[T, A, B, ...]``, counts ``[T, A]`` (``tx.update`` is given their sums), ``aux`` has the axes ``[T, A]``.

    Raises:
      ValueError: ``tx`` holds no `gems` or several, the state is another's, or the batch has another number of tasks
        or parts.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from gems_jax import gems
      >>> params = {"kernel": jnp.ones((8, 4)), "bias": jnp.zeros(4)}
      >>> loss = lambda p, x: jnp.mean((x @ p["kernel"] + p["bias"]) ** 2)
      >>> tx = gems(1e-2, num_tasks=2, rank=2)
      >>> state = tx.init(params)
      >>> fn = projected_task_grads(loss, tx)
      >>> batch = jax.random.normal(jax.random.key(0), (2, 16, 8))       # [tasks, rows, features]
      >>> losses, grads = fn(params, state, batch)
      >>> grads["kernel"].shared.shape, grads["bias"].shape
      ((2, 1, 2, 8), (2, 4))
      >>> updates, state = tx.update(grads, state, params, task_losses=losses)
      >>> params = optax.apply_updates(params, updates)
      >>> bool(loss(params, batch.reshape(32, 8)) < losses.mean())
      True
    """
    check_function("loss_fn", loss_fn, "a function (params, batch) -> scalar")
    check_transform("tx", tx)
    check_flag("has_aux", has_aux)
    if not is_whole(accumulate) or accumulate < 1:
        raise ValueError(f"accumulate is the number of parts of a batch, a whole number from 1 on, got {accumulate!r}")

    def fn(
        params: PyTree, opt_state: PyTree, task_batch: PyTree, task_counts: jax.Array | None = None
    ) -> tuple[Any, PyTree]:
        check_leaves(task_batch)
        params = jax.tree.map(jnp.asarray, params)
        task_batch = jax.tree.map(jnp.asarray, task_batch)
        if opt_state is None:
            raise ValueError("opt_state is None: pass the state that tx.init(params) makes")
        one_part = task_batch if accumulate == 1 else _first_part(task_batch, accumulate)
        served = find_served(loss_fn, tx, opt_state, params, one_part)
        counts, weights = _counted(task_counts, served.settings.num_tasks, accumulate)
        leaves: Any = jax.tree.leaves(params)
        passed, grads = gradients(Model(served, leaves, task_batch, has_aux, spmd_axis_name, weights), counts)
        value = (passed.losses, passed.aux) if has_aux else passed.losses
        return value, jax.tree.unflatten(jax.tree.structure(params), [grads[i] for i in range(len(leaves))])

    return fn


def _first_part(task_batch: PyTree, accumulate: int) -> PyTree:
    """Shapes of a batch's first part, ``[T, B, ...]`` of ``[T, A, B, ...]``."""
    for path, x in named_leaves(task_batch):
        if x.ndim < 2 or x.shape[1] != accumulate:
            raise ValueError(
                f"batch leaf {path!r} has shape {list(x.shape)}, expected [T, {accumulate}, ...]: an axis of "
                f"tasks, then one of the {accumulate} parts (accumulate); cut the rows of each task into {accumulate} "
                "parts, and repeat what these share"
            )
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((x.shape[0], *x.shape[2:]), x.dtype), task_batch)


def _counted(
    task_counts: jax.Array | None, num_tasks: int, accumulate: int
) -> tuple[jax.Array | None, jax.Array | None]:
    """Counts ``[T]`` of the whole batch, and the weights ``[T, A]`` of its parts."""
    expected = (num_tasks,) if accumulate == 1 else (num_tasks, accumulate)
    if task_counts is not None and jnp.shape(task_counts) != expected:
        words = "one of each task (num_tasks)" + ("" if accumulate == 1 else " and part (accumulate)")
        raise ValueError(f"task_counts has shape {list(jnp.shape(task_counts))}, expected {list(expected)}, {words}")
    if accumulate == 1:
        return task_counts, None
    counts = jnp.ones(expected) if task_counts is None else jnp.asarray(task_counts)
    counts = counts.astype(work_dtype(counts.dtype))
    total = jnp.sum(counts, axis=1)
    return None if task_counts is None else total, counts / jnp.where(total > 0, total, 1)[:, None]
