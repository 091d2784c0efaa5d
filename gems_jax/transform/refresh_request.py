"""A group's request in a step: which of its bases may be refreshed, and the gradients to make new ones from."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from gems_jax.linalg.scales import Size, size_of
from gems_jax.transform.active_null_space import ActiveNullSpace
from gems_jax.transform.branches import BranchState, TaskMask
from gems_jax.transform.plan import Group, KernelPlan
from gems_jax.transform.refresh import Bases, Gradients, Masks, Refresh, Request


def request_refresh(
    group: Group,
    state: BranchState,
    gradients: Gradients,
    peaks: Gradients,
    present: TaskMask,
    active: ActiveNullSpace,
    refresh: Refresh,
    turns: Mapping[int, tuple[int, ...]],
) -> Request:
    """The request of a group of equal kernels; with ``constraint="gradient"`` its gradients are projected.

    Args:
      group: the kernels.
      state: with the bases in force.
      gradients: ``[k, p, q]`` ``G_s`` and ``[T, k, p, q]``, or ``None`` where they came merged.
      peaks: ``[k]`` and ``[T, k]`` bounds of their largest entries.
      present: which branches have something to learn from.
      active: the null space in this step.
      refresh: when and how bases are refreshed.
      turns: of all kernels by index, see `gems_jax.transform.plan.Plan.turns`.
    """
    shared, task = gradients
    if group[0].task_rank == 0:
        task = None
    if active.constraint == "gradient":
        shared = active.project(group, shared)
        task = None if task is None else jax.vmap(lambda g: active.project(group, g))(task)
    shared_size, task_size = sizes_of((shared, task), peaks)

    def alive(size: Size, there: jax.Array) -> jax.Array:
        return there & present.shared & size.is_there()

    projector = active.on_side(group)
    if projector.factor is not None:
        count = state.shared_basis.shape[0]
        projector = projector._replace(factor=jnp.broadcast_to(projector.factor, (count, *projector.factor.shape[-2:])))
    usable = alive(shared_size, present.shared)[None]
    bases: Bases = (state.shared_basis, None)
    pending = state.pending[:1]
    if task_size is not None and state.task_basis is not None:
        usable = jnp.concatenate([usable, alive(task_size, present.tasks[:, None])])
        bases, pending = (state.shared_basis, state.task_basis), state.pending
    return Request(
        old=bases,
        gradients=(shared, task),
        sizes=(shared_size, task_size),
        pending=pending,
        usable=usable,
        projector=projector,
        masks=_column_masks(group, refresh.settings.complementary),
        turns=tuple(turn for k in group for turn in turns[k.index]),
    )


def sizes_of(gradients: Gradients, peaks: Gradients) -> tuple[Size, Size | None]:
    """The sizes of a group's gradients, from bounds of their largest entries."""
    (shared, task), (peak, task_peak) = gradients, peaks
    return size_of(shared, peak), None if task is None or task_peak is None else size_of(task, task_peak)


def _column_masks(group: Sequence[KernelPlan], complementary: bool) -> Masks:
    """Masks of the columns that each kernel's null space has room for, ``[k, r]`` and ``[k, r_t]``."""
    kernel = group[0]

    def stacked(rank: int, used: int) -> jax.Array | None:
        masks = [k.columns(rank, used) for k in group]
        if rank == 0 or all(mask is None for mask in masks):
            return None
        return jnp.asarray(np.concatenate([np.ones((1, rank), bool) if m is None else m for m in masks]))

    return stacked(kernel.rank, 0), stacked(kernel.task_rank, kernel.rank if complementary else 0)
