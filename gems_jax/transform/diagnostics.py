"""Diagnostics of a step: of its gradients (norms, cosines, which tasks take part) first, of all of it at the end."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gems_jax.linalg.sizes import global_norm, is_normal, largest, squares, task_peaks, to_one
from gems_jax.task_grads import inner_products, task_weights
from gems_jax.transform.branches import BranchState, Steps, TaskMask
from gems_jax.transform.in_turn import once
from gems_jax.transform.state import Diagnostics, work_dtype


class GradientDiagnostics(NamedTuple):
    """Diagnostics of a step's gradients.

    Attributes:
      norms: ``[T]`` of the tasks' gradients over leaves with a full task axis, 0 for tasks not present.
      cosines: ``[T, T]`` between them, 0 where a gradient is zero.
      present: tasks that have a finite gradient other than 0 (and tokens).
      finite: ``[T]`` bool, whether a task's gradient is, and all that came merged for all tasks.
      weights: ``[T]`` of the tasks in the shared gradient, 0 for those not present.
      powers: ``[1 + T]`` powers of two that bring the shared and the tasks' gradients near 1.
    """

    norms: jax.Array
    cosines: jax.Array
    present: TaskMask
    finite: jax.Array
    weights: jax.Array
    powers: jax.Array


def diagnose_gradients(
    gradients: Sequence[jax.Array], num_tasks: int, counts: jax.Array | None, shared: Sequence[jax.Array] | None
) -> GradientDiagnostics:
    """Diagnoses stacked gradients, whatever their magnitude; in float32 or wider.

    Args:
      gradients: arrays ``[T, ...]``, or ``[1, ...]`` where already merged.
      num_tasks: ``T``.
      counts: ``[T]`` tokens per task, or ``None``.
      shared: the caller's own shared gradient, or ``None``.

    Returns:
      `GradientDiagnostics`.
    """
    gradients = [g.astype(work_dtype(g.dtype)) for g in gradients]
    stacked = [g for g in gradients if g.shape[0] == num_tasks]
    common = [g for g in gradients if g.shape[0] != num_tasks]
    common += [g.astype(work_dtype(g.dtype)) for g in shared or []]
    peaks = task_peaks(stacked, num_tasks)
    tokens = jnp.ones((num_tasks,), jnp.float32) if counts is None else jnp.asarray(counts)
    powers = to_one(peaks)
    products = jnp.zeros((num_tasks, num_tasks), powers.dtype)
    for g in stacked:  # one after the other: tasks are copied apart for it
        own = once(products, powers, jnp.ones_like(powers))
        products += inner_products([_scaled(g, own)], num_tasks).astype(products.dtype)
    # A largest entry does not tell of NaN, a sum of squares does.
    finite = jnp.isfinite(peaks) & ~jnp.isnan(jnp.diagonal(products))
    tasks = finite & is_normal(peaks) if stacked else jnp.ones((num_tasks,), bool)
    tasks &= tokens > 0
    norms = jnp.sqrt(jnp.where(tasks, jnp.diagonal(products), 0))
    outer = norms[:, None] * norms
    weights = jnp.where(tasks, task_weights(jnp.where(tasks, tokens, 0), num_tasks, peaks.dtype), 0)
    peaks_of_common = [jnp.where(jnp.isnan(squares(g, g.ndim)), jnp.nan, largest(g, g.ndim)) for g in common]
    peak = functools.reduce(jnp.maximum, peaks_of_common, jnp.zeros((), peaks.dtype))
    is_there = jnp.any(tasks) if shared is None else jnp.ones((), bool)
    most = jnp.maximum(peak, jnp.max(jnp.where(tasks, peaks, 0)))
    return GradientDiagnostics(
        # The norms of finite gradients are finite, if as large as numbers get.
        norms=jnp.minimum(norms / powers, jnp.finfo(norms.dtype).max),
        cosines=jnp.where(outer > 0, products / jnp.where(outer > 0, outer, 1), 0),
        # A shared gradient that is not finite makes all tasks leave the step out, and is counted for each.
        present=TaskMask(tasks, is_there & jnp.isfinite(peak)),
        finite=finite & jnp.isfinite(peak),
        weights=weights,
        powers=jnp.concatenate([to_one(most)[None], powers]),
    )


def _scaled(gradient: jax.Array, powers: jax.Array) -> jax.Array:
    return gradient * powers.astype(gradient.dtype).reshape(-1, *(1,) * (gradient.ndim - 1))


def diagnose_step(
    diagnosed: GradientDiagnostics,
    gates: jax.Array,
    captured: tuple[jax.Array, jax.Array],
    emitted: Sequence[jax.Array],
    branches: Sequence[tuple[Steps, BranchState]],
    old: Diagnostics,
) -> Diagnostics:
    """The whole step's `Diagnostics`.

    Args:
      diagnosed: see `diagnose_gradients`.
      gates: ``[T]``.
      captured: ``[1 + T]`` squared norms of the low-rank gradients, and of the gradients, scaled alike.
      emitted: all updates.
      branches: steps and states of the groups.
      old: the former step's, for the counters.
    """
    tasks = diagnosed.present.tasks
    low, full = captured
    known = (full > 0) & jnp.isfinite(full)
    zero, dtype = jnp.zeros((), jnp.int32), old.gates.dtype
    return Diagnostics(
        gates=gates.astype(dtype),
        weights=diagnosed.weights.astype(dtype),
        grad_norms=diagnosed.norms.astype(dtype),
        cosines=diagnosed.cosines.astype(dtype),
        captured=jnp.where(known, low / jnp.where(known, full, 1), 0).astype(dtype),
        update_norm=global_norm(emitted).astype(dtype),
        refreshed=sum((steps.refreshed for steps, _ in branches), zero),
        failed=old.failed + sum((steps.failed for steps, _ in branches), zero),
        waiting=sum((jnp.sum(branch.pending, dtype=jnp.int32) for _, branch in branches), zero),
        absent=old.absent + (~tasks & diagnosed.finite),
        skipped=old.skipped + ~diagnosed.finite,
    )
