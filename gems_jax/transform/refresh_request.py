"""A group's request in a step: which of its bases may be refreshed, and the gradients to make new ones from."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from gems_jax.linalg.projection import Projector
from gems_jax.linalg.sizes import Size, size_of
from gems_jax.transform.active_null_space import ActiveNullSpace
from gems_jax.transform.branches import BranchState, TaskMask
from gems_jax.transform.group_gradients import GroupGradients
from gems_jax.transform.plan import Group, KernelPlan
from gems_jax.transform.random_bases import member_ids
from gems_jax.transform.refresh import Bases, Masks, Refresh, Request


def request_refresh(
    group: Group,
    state: BranchState,
    gradients: GroupGradients,
    present: TaskMask,
    active: ActiveNullSpace,
    refresh: Refresh,
    turns: Mapping[int, tuple[int, ...]],
) -> Request:
    """The request of a group of equal kernels; with ``constraint="gradient"`` its gradients are projected.

    Args:
      group: the kernels.
      state: with the bases in force.
      gradients: of the group; a shared one alone where they came merged.
      present: which branches have something to learn from.
      active: the null space in this step.
      refresh: when and how bases are refreshed.
      turns: of all kernels by index, see `gems_jax.transform.plan.Plan.turns`.
    """
    if group[0].task_rank == 0:
        gradients = gradients._replace(task=None, sizes=(gradients.sizes[0], None))
    if active.constraint == "gradient":
        gradients = _projected(gradients, group, active)
    sizes = gradients.sizes
    bases: Bases = (state.shared_basis, None)
    pending = state.pending[:1]
    if sizes[1] is not None and state.task_basis is not None:
        bases, pending = (state.shared_basis, state.task_basis), state.pending
    return Request(
        old=bases,
        gradients=(gradients.shared, gradients.task),
        sizes=sizes,
        pending=pending,
        usable=usable_branches(sizes, present)[: len(pending)],
        projector=projector_of(active, group, len(state.shared_basis)),
        masks=column_masks(group, refresh.settings.complementary),
        turns=tuple(turn for k in group for turn in turns[k.index]),
        ids=jnp.asarray(member_ids(group), jnp.uint32),
    )


def _projected(gradients: GroupGradients, group: Group, active: ActiveNullSpace) -> GroupGradients:
    """Inside the null space."""
    shared, (peak, task_peak) = active.project(group, gradients.shared), gradients.peaks
    task, of_tasks = None, None
    if gradients.task is not None and task_peak is not None:
        task = jax.vmap(lambda g: active.project(group, g))(gradients.task)
        of_tasks = size_of([task], task_peak)
    return gradients._replace(shared=shared, task=task, sizes=(size_of([shared], peak), of_tasks))


def usable_branches(sizes: tuple[Size, Size | None], present: TaskMask) -> jax.Array:
    """``[1 + T, k]`` (``[1, k]`` without task branches): those whose gradient is finite and not zero."""

    def alive(size: Size, there: jax.Array) -> jax.Array:
        return there & present.shared & size.is_there()

    shared = alive(sizes[0], present.shared)[None]
    return shared if sizes[1] is None else jnp.concatenate([shared, alive(sizes[1], present.tasks[:, None])])


def projector_of(active: ActiveNullSpace, group: Group, count: int) -> Projector:
    """The null space that a group's bases are made in, a factor for each of its ``count`` matrices."""
    projector = active.on_side(group)
    if projector.factor is None:
        return projector
    return projector._replace(factor=jnp.broadcast_to(projector.factor, (count, *projector.factor.shape[-2:])))


def column_masks(group: Sequence[KernelPlan], complementary: bool) -> Masks:
    """Masks of the columns that each kernel's null space has room for, ``[k, r]`` and ``[k, r_t]``."""
    kernel = group[0]

    def stacked(rank: int, used: int) -> jax.Array | None:
        masks = [k.columns(rank, used) for k in group]
        if rank == 0 or all(mask is None for mask in masks):
            return None
        return jnp.asarray(np.concatenate([np.ones((1, rank), bool) if m is None else m for m in masks]))

    return stacked(kernel.rank, 0), stacked(kernel.task_rank, kernel.rank if complementary else 0)
