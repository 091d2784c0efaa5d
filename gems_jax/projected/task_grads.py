"""Low-rank gradients of all tasks, for `gems`: its bases are multiplied with inside the model's own program."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gems_jax.projected.served import find_served
from gems_jax.projected.step_gradients import Model, gradients
from gems_jax.types import PyTree


def projected_task_grads(
    loss_fn: Callable[[PyTree, PyTree], Any], tx: Any, has_aux: bool = False, spmd_axis_name: str | None = None
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

    Returns:
      ``fn(params, opt_state, task_batch, task_counts=None)`` with batch leaves ``[T, B, ...]`` giving ``(losses,
      grads)``: losses ``[T]`` float32, ``grads`` a tree like ``params`` that ``tx.update`` takes like others, with
      ``[T, *shape]`` or a `LowRankGradient` in the place of a leaf; with ``has_aux`` ``((losses, aux), grads)``.
      ``task_counts``: ``[T]``, the same that ``tx.update`` is given.

    Raises:
      ValueError: ``tx`` holds no `gems` or several, the state is another's, or the batch has another number of tasks.

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

    def fn(
        params: PyTree, opt_state: PyTree, task_batch: PyTree, task_counts: jax.Array | None = None
    ) -> tuple[Any, PyTree]:
        params = jax.tree.map(jnp.asarray, params)
        task_batch = jax.tree.map(jnp.asarray, task_batch)
        if opt_state is None:
            raise ValueError("opt_state is None: pass the state that tx.init(params) makes")
        served = find_served(loss_fn, tx, opt_state, params, task_batch)
        num_tasks = served.settings.num_tasks
        if task_counts is not None and jnp.shape(task_counts) != (num_tasks,):
            got = list(jnp.shape(task_counts))
            raise ValueError(f"task_counts has shape {got}, expected [{num_tasks}], one of each task (num_tasks)")
        leaves: Any = jax.tree.leaves(params)
        passed, grads = gradients(Model(served, leaves, task_batch, has_aux, spmd_axis_name), task_counts)
        value = (passed.losses, passed.aux) if has_aux else passed.losses
        return value, jax.tree.unflatten(jax.tree.structure(params), [grads[i] for i in range(len(leaves))])

    return fn
