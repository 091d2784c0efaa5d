"""What a step measures: the tasks' Gramian, who takes part, diagnostics."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gems_jax.branches import BranchState, Presence, Steps
from gems_jax.state import Diagnostics, work_dtype
from gems_jax.task_grads import gramian, task_weights

PyTree = Any


class Measured(NamedTuple):
    """The gradients of a step, measured.

    Attributes:
      gramian: ``[T, T]`` inner products of the tasks' gradients over leaves with a full task axis.
      present: tasks that have a finite gradient other than 0 (and tokens).
      finite: ``[T]`` bool, whether a task's gradient is, and all that came merged for all tasks.
      weights: ``[T]`` of the tasks in the shared gradient, 0 for those not present.
    """

    gramian: jax.Array
    present: Presence
    finite: jax.Array
    weights: jax.Array


def squared_norm(arrays: Sequence[jax.Array]) -> jax.Array:
    """``sum |x|^2`` over arrays, float32 or wider."""
    sizes = [jnp.sum(x.astype(work_dtype(x.dtype)) ** 2) for x in arrays]
    return sum(sizes, jnp.zeros((), jnp.float32))


def measure(
    gradients: Sequence[jax.Array], num_tasks: int, counts: jax.Array | None, shared: Sequence[jax.Array] | None
) -> Measured:
    """Measures stacked gradients.

    Args:
      gradients: arrays ``[T, ...]``, or ``[1, ...]`` where already merged.
      num_tasks: ``T``.
      counts: ``[T]`` tokens per task, or ``None``.
      shared: the caller's own shared gradient, or ``None``.

    Returns:
      `Measured`.
    """
    stacked = [g for g in gradients if g.shape[0] == num_tasks]
    merged = [g for g in gradients if g.shape[0] != num_tasks]
    products = gramian(stacked, num_tasks)
    sizes = jnp.diagonal(products)
    finite = jnp.isfinite(sizes)
    tasks = finite & (sizes > 0) if stacked else jnp.ones((num_tasks,), bool)
    tokens = jnp.ones((num_tasks,), jnp.float32) if counts is None else jnp.asarray(counts)
    tasks &= tokens > 0
    weights = jnp.where(tasks, task_weights(jnp.where(tasks, tokens, 0), num_tasks), 0)
    common = jnp.isfinite(squared_norm([*merged, *(shared or [])]))
    is_there = jnp.any(tasks) if shared is None else jnp.ones((), bool)
    # What all tasks share and is not finite makes all of them leave the step out, and is counted for each.
    return Measured(products, Presence(tasks, is_there & common), finite & common, weights)


def diagnose(
    measured: Measured,
    gates: jax.Array,
    captured: tuple[jax.Array, jax.Array],
    emitted: Sequence[jax.Array],
    branches: Sequence[tuple[Steps, BranchState]],
    old: Diagnostics,
) -> Diagnostics:
    """The step's `Diagnostics`.

    Args:
      measured: see `measure`.
      gates: ``[T]``.
      captured: ``[1 + T]`` squared norms of the low-rank gradients, and of the gradients.
      emitted: all updates.
      branches: what each group did.
      old: the former step's, for the counters.
    """
    tasks = measured.present.tasks
    norms = jnp.sqrt(jnp.where(tasks, jnp.diagonal(measured.gramian), 0))
    outer = norms[:, None] * norms
    nonzero = (outer > 0) & jnp.isfinite(measured.gramian)
    low, full = captured
    known = (full > 0) & jnp.isfinite(full)
    zero = jnp.zeros((), jnp.int32)
    return Diagnostics(
        gates=gates.astype(jnp.float32),
        weights=measured.weights.astype(jnp.float32),
        grad_norms=norms,
        cosines=jnp.where(nonzero, measured.gramian / jnp.where(nonzero, outer, 1), 0),
        captured=jnp.where(known, low / jnp.where(known, full, 1), 0),
        update_norm=jnp.sqrt(squared_norm(emitted)).astype(jnp.float32),
        refreshed=sum((steps.refreshed for steps, _ in branches), zero),
        waiting=sum((jnp.sum(branch.pending, dtype=jnp.int32) for _, branch in branches), zero),
        absent=old.absent + (~tasks & measured.finite),
        skipped=old.skipped + ~measured.finite,
    )
