"""One step of the transform: gradients of all tasks in, one update a leaf out."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gems_jax.boxes import drop_unfit_boxes, open_if_alone, restore_boxes, unboxed
from gems_jax.linalg.projection import project_update, projected_axis_first
from gems_jax.linalg.sizes import largest, limited
from gems_jax.task_grads import weighted_sum
from gems_jax.transform.active_null_space import ActiveNullSpace
from gems_jax.transform.branches import BranchState, Steps, fuse, step_group
from gems_jax.transform.diagnostics import GradientDiagnostics, diagnose_gradients, diagnose_step
from gems_jax.transform.gates import Signals
from gems_jax.transform.group_gradients import GroupGradients, group_gradients
from gems_jax.transform.in_turn import once
from gems_jax.transform.low_gradients import Gradient, arrays_of, groups_of, low_gradients
from gems_jax.transform.plan import Group, Plan
from gems_jax.transform.recovery import recover
from gems_jax.transform.refresh import refresh_at
from gems_jax.transform.settings import Settings, chosen_leaves
from gems_jax.transform.state import GemsState, entries, mirror, to_leaves, to_matrices, work_dtype
from gems_jax.transform.state_rows import StateRows
from gems_jax.types import PyTree


class UpdateArguments(NamedTuple):
    """The arguments of one call of ``update``, as lists in leaf order.

    Attributes:
      grads: ``[T, *shape]`` or ``[1, *shape]``, or a `LowRankGradient`.
      weights: the parameters.
      shared: ``[*shape]`` the caller's own shared gradient, or ``None``.
      losses, counts: ``[T]`` or ``None``.
      extra: extra arguments for inner and fallback transforms.
    """

    grads: list[Gradient]
    weights: list[jax.Array]
    shared: list[jax.Array] | None
    losses: jax.Array | None
    counts: jax.Array | None
    extra: dict[str, Any]


def take_step(
    call: UpdateArguments, params: PyTree, state: GemsState, plan: Plan, settings: Settings
) -> tuple[PyTree, GemsState]:
    """Merges, projects, steps, fuses and constrains; see `gems_jax.gems`.

    Args:
      call: the arguments of ``update``, checked.
      params: tree of the parameters.
      state: the former state.
      plan: of the parameters.
      settings: of the transform.

    Returns:
      ``(updates, state)``: updates ``[*shape]`` in float32 or wider.
    """
    bare = unboxed(params)
    treedef: Any = jax.tree.structure(bare)
    active = ActiveNullSpace(settings.null_space, settings.constraint, state.null_space)
    groups = groups_of(plan, call.grads, settings.num_tasks)
    grouped = {k.index for group in groups for k in group}
    alone: dict[int, Any] = {i: call.grads[i] for i in range(len(call.grads)) if i not in grouped}
    arrays = [arrays_of(call.grads, group) for group in groups]
    parts = [x for pair in arrays for x in pair if x is not None]
    diagnosed = diagnose_gradients([*parts, *alone.values()], settings.num_tasks, call.counts, call.shared)
    present = diagnosed.present

    rows = StateRows.read(state, treedef, settings)
    refresh = refresh_at(state.count, settings)
    before = [rows.branch(group, settings) for group in groups]
    gradients = [_merged(call, *pair, diagnosed) for pair in zip(groups, arrays, strict=True)]
    low_rank = low_gradients(call.grads, groups, before, gradients, present, active, refresh, plan)
    branches = []
    for group, branch, (lows, refreshed) in zip(groups, before, low_rank, strict=True):
        weights = to_matrices([call.weights[k.index] for k in group], group, 0).astype(lows.shared.dtype)
        branches.append(step_group(branch, lows, refreshed, weights, present, diagnosed.powers, settings, call.extra))

    captured = sum((steps.energy for steps, _ in branches), jnp.zeros((1 + settings.num_tasks,), jnp.float32))
    gates, gate_state = _gates(call, branches, captured, diagnosed, state, settings)
    decay = jnp.where(present.shared, settings.weight_decay, 0) if settings.decays else None
    decaying = chosen_leaves(params, settings.mask)
    updates: list[Any] = [None] * len(call.weights)
    emitted: list[jax.Array] = []
    scale = settings.scale
    for group, old, gradient, (steps, branch) in zip(groups, before, gradients, branches, strict=True):
        outside = None
        if branch.recovered is not None:
            outside, former = recover(group, gradient, branch, steps, active, branch.recovered)
            branch = branch._replace(recovered=former)
        update = fuse(branch, steps, gates, scale, active.across(group), group[0].side, outside)
        there = largest(update, update.ndim)  # which diagnostics ask for: a number, whatever the kernels' shape
        scale = once(there, scale, 0)
        shared, task = once(there, (branch.shared_inner, branch.task_inner), (old.shared_inner, old.task_inner))
        branch = branch._replace(shared_inner=shared, task_inner=task)
        if decay is not None:
            update += _decay_of_group(call, group, decay.astype(update.dtype), decaying, active)
        emitted.append(update)
        for k, leaf in zip(group, to_leaves(update, group), strict=True):
            updates[k.index] = leaf
        rows.write(group, branch, settings)

    steps_alone, fallback_state = _fallback(call, params, alone, diagnosed, state, plan, settings)
    for i, update in steps_alone.items():
        if decay is not None and decaying[i] and i not in _frozen(plan):
            update += decay.astype(update.dtype) * call.weights[i].astype(update.dtype)
        if i in plan.constrained and active.null_space is not None:
            spec, source = plan.constrained[i]
            update = project_update(update, spec, active.of_source(source), active.null_space.side)
        updates[i] = update
        emitted.append(update)

    full = sum((gradient.energy(diagnosed.powers) for gradient in gradients), jnp.zeros_like(captured))
    new_state = GemsState(
        count=optax.safe_increment(state.count),
        **rows.trees(bare, treedef, settings),
        fallback=fallback_state,
        gate=gate_state,
        null_space=state.null_space,
        diagnostics=diagnose_step(diagnosed, gates, (captured, full), emitted, branches, state.diagnostics),
    )
    return jax.tree.unflatten(jax.tree.structure(params), updates), new_state


def _merged(
    call: UpdateArguments,
    group: Group,
    arrays: tuple[jax.Array, jax.Array | None],
    diagnosed: GradientDiagnostics,
) -> GroupGradients:
    dtype = work_dtype(call.weights[group[0].index].dtype)
    gradient, rest = arrays
    shared = None
    if call.shared is not None:
        shared = to_matrices([call.shared[k.index] for k in group], group, 0).astype(dtype)
    return group_gradients(gradient.astype(dtype), rest, diagnosed, shared)


def _gates(
    call: UpdateArguments,
    branches: Sequence[tuple[Steps, BranchState]],
    captured: jax.Array,
    diagnosed: GradientDiagnostics,
    state: GemsState,
    settings: Settings,
) -> tuple[jax.Array, PyTree]:
    """The gates of this step; their state stays where nothing is to be learnt from it."""
    present = diagnosed.present
    norms = jnp.sqrt(captured[1:]) / diagnosed.powers[1:] if settings.gate.norms == "projected" else diagnosed.norms
    ones = jnp.ones_like(diagnosed.norms)

    def quiet(x: jax.Array | None) -> jax.Array:
        x = ones if x is None else jnp.asarray(x, ones.dtype)
        return jnp.where(present.tasks & jnp.isfinite(x), x, 0)

    signals = Signals(
        losses=quiet(call.losses),
        grad_norms=quiet(norms),
        counts=quiet(call.counts),
        progress=sum((steps.progress for steps, _ in branches), jnp.zeros_like(ones)),
    )
    gates, gate_state = settings.gate.update(signals, state.gate)
    return gates, jax.tree.map(lambda new, old: jnp.where(present.shared, new, old), gate_state, state.gate)


def _fallback(
    call: UpdateArguments,
    params: PyTree,
    grads: dict[int, jax.Array],
    diagnosed: GradientDiagnostics,
    state: GemsState,
    plan: Plan,
    settings: Settings,
) -> tuple[dict[int, jax.Array], PyTree]:
    """Steps of the leaves without a subspace: the fallback's, or 0 for kernels whose null space is empty."""
    weights = {i: w.astype(work_dtype(w.dtype)) for i, w in enumerate(call.weights) if i in grads}
    updates = {i: jnp.zeros_like(w) for i, w in weights.items()}
    if not plan.fallback:
        return updates, state.fallback
    there = diagnosed.present.shared
    merged = {}
    for i in plan.fallback:
        gradient = weighted_sum(grads[i], diagnosed.weights) if call.shared is None else call.shared[i]
        gradient = jnp.where(there, gradient.astype(weights[i].dtype), 0)
        merged[i] = limited(gradient, largest(gradient, gradient.ndim))
    params = open_if_alone(params)
    kept = mirror(params, {i: weights[i] for i in plan.fallback})
    before = restore_boxes(state.fallback, params)
    fallback = optax.with_extra_args_support(settings.fallback)
    stepped, after = fallback.update(mirror(params, merged), before, kept, **call.extra)
    steps = entries(unboxed(stepped), jax.tree.structure(unboxed(params)))
    for i in plan.fallback:
        updates[i] = jnp.where(there, steps[i], 0).astype(weights[i].dtype)
    after = drop_unfit_boxes(after, params)
    return updates, jax.tree.map(lambda a, b: jnp.where(there, a, b), after, state.fallback)


def _frozen(plan: Plan) -> set[int]:
    """Kernels that can move in no direction."""
    return {k.index for k in plan.kernels if k.rank == 0}


def _decay_of_group(
    call: UpdateArguments, group: Group, decay: jax.Array, decaying: Sequence[bool], active: ActiveNullSpace
) -> jax.Array:
    """``weight_decay * N W`` for the members that decay, ``[k, in, out]``."""
    weights = to_matrices([call.weights[k.index] for k in group], group, 0).astype(decay.dtype)
    if active.constraint == "update":
        weights = active.project(group, weights)
    flags = jnp.asarray([decaying[k.index] for k in group])
    return projected_axis_first(jnp.where(flags[:, None, None], decay * weights, 0), group[0].side)
