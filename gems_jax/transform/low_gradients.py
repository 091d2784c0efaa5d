"""Low-rank gradients of all groups and the bases that they are in: of whole gradients, or as they came."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gems_jax.linalg.orthonormal import matmul
from gems_jax.linalg.stacks import as_they_lie
from gems_jax.transform.active_null_space import ActiveNullSpace
from gems_jax.transform.branches import BranchState, LowGradients, TaskMask
from gems_jax.transform.group_gradients import GroupGradients
from gems_jax.transform.low_rank_gradient import LowRankGradient, is_low_rank
from gems_jax.transform.plan import Group, KernelPlan, Plan
from gems_jax.transform.refresh import Refresh, Refreshed, Request, members_due, room
from gems_jax.transform.refresh_groups import refresh_groups
from gems_jax.transform.refresh_request import request_refresh
from gems_jax.transform.settings import Settings
from gems_jax.transform.state import gather, to_matrices

Gradient = jax.Array | LowRankGradient


def check_products(grads: Sequence[Gradient], plan: Plan, settings: Settings) -> None:
    """Checks that each `LowRankGradient` is of a kernel of this plan, in its bases, as it was made, and enough.

    A transform in front that calculates with a tree's leaves would change the bases with the products; it makes numbers
    of the truth values beside them, too.

    Raises:
      ValueError: naming the first that is not.
    """
    kernels = {k.index: k for k in plan.kernels if k.rank}
    for i, grad in enumerate(grads):
        if not isinstance(grad, LowRankGradient):
            continue
        k, got = kernels.get(i), grad.shared_basis.shape
        if k is None or got != (*k.batch_shape, k.kept, k.rank) or (grad.task is None) != (k.task_rank == 0):
            raise ValueError(
                f"the projected gradient of {plan.paths[i]!r} is in bases of shape {list(got)}, which this transform "
                "does not have for it: call projected_task_grads with the same tx whose update takes its gradients"
            )
        if settings.recovery != "none":
            raise ValueError(
                f"recovery {settings.recovery!r} adds what lies outside the bases, and the projected gradient of "
                f"{plan.paths[i]!r} does not have it: take task_value_and_grad, or recovery='none'"
            )
        if grad.done.dtype != bool:
            raise ValueError(
                f"the projected gradient of {plan.paths[i]!r} was changed on its way to gems, its bases with it: put "
                "transforms that scale, clip or add behind gems, or take task_value_and_grad"
            )


def groups_of(plan: Plan, grads: Sequence[Gradient], num_tasks: int) -> list[Group]:
    """Groups of the plan, apart where some leaves came with a full task axis, others merged or of low rank."""

    def form(kernel: KernelPlan) -> str:
        grad = grads[kernel.index]
        if isinstance(grad, LowRankGradient):
            return "low rank"
        return "full" if grad.shape[0] == num_tasks else "merged"

    groups: list[Group] = []
    for group in plan.groups:
        parts = (tuple(k for k in group if form(k) == wanted) for wanted in ("full", "merged", "low rank"))
        groups += [part for part in parts if part]
    return groups


def arrays_of(grads: Sequence[Gradient], group: Group) -> tuple[jax.Array, jax.Array | None]:
    """``[T, k, p, q]`` of a group; or what stands for it, inside the bases and outside, see `LowRankGradient`."""
    mine: list[Any] = [grads[k.index] for k in group]
    if not is_low_rank(mine[0]):
        return to_matrices(mine, group, 1), None
    batch_ndim = len(group[0].batch_shape)
    return gather([g.shared for g in mine], 1, batch_ndim), gather([g.rest for g in mine], 1, batch_ndim)


def low_gradients(
    grads: Sequence[Gradient],
    groups: Sequence[Group],
    before: Sequence[BranchState],
    gradients: Sequence[GroupGradients],
    present: TaskMask,
    active: ActiveNullSpace,
    refresh: Refresh,
    plan: Plan,
) -> list[tuple[LowGradients, Refreshed]]:
    """``L_b = U_b^T G_b`` (arXiv 2601.09496, section 3), and the bases: refreshed here, or as they came.

    Args:
      grads: of all leaves.
      groups: see `groups_of`.
      before: the groups' states.
      gradients: the groups' gradients, merged.
      present: which branches have something to learn from.
      active: the null space in this step.
      refresh: when and how bases are refreshed.
      plan: of the parameters.
    """
    turns = plan.turns(refresh.stagger_every)
    whole = [i for i, group in enumerate(groups) if not is_low_rank(grads[group[0].index])]
    requests = [request_refresh(groups[i], before[i], gradients[i], present, active, refresh, turns) for i in whole]
    found: dict[int, tuple[LowGradients, Refreshed]] = {}
    for i, request, refreshed in zip(whole, requests, refresh_groups(requests, refresh), strict=True):
        complete = _with_waiting(refreshed, before[i], request, refresh)
        found[i] = _products(before[i], request, refreshed), complete
    for i, group in enumerate(groups):
        if i not in found:
            found[i] = _as_they_came([grads[k.index] for k in group], group, gradients[i])
    return [found[i] for i in range(len(groups))]


def _as_they_came(grads: Sequence[Any], group: Group, gradients: GroupGradients) -> tuple[LowGradients, Refreshed]:
    """Of a group of `LowRankGradient`; the shared branch's are merged already."""

    def stacked(name: str, leading: int) -> Any:
        arrays = [getattr(g, name) for g in grads]
        return None if arrays[0] is None else gather(arrays, leading, len(group[0].batch_shape))

    first = grads[0].shared
    progress = jnp.zeros(first.shape[:1], first.dtype)
    lows = LowGradients(gradients.shared, stacked("task", 1), gradients.sizes, progress)
    bases = stacked("shared_basis", 0), stacked("task_basis", 1)
    return lows, Refreshed(bases, stacked("pending", 1), stacked("done", 1), stacked("failed", 1))


def _products(state: BranchState, request: Request, refreshed: Refreshed) -> LowGradients:
    """Low-rank gradients of whole ones: those of a request, in the bases after it."""
    (shared_grad, task_grad), (shared, task) = request.gradients, refreshed.bases
    progress = jnp.zeros((len(state.pending) - 1,), shared_grad.dtype)
    if state.previous is not None and state.task_basis is not None:
        seen = matmul(state.task_basis.mT, shared_grad[None])
        progress = jnp.sum(seen * state.previous, axis=(1, 2, 3))
    low = None
    if task is not None and task_grad is not None:
        low = as_they_lie(lambda basis, gradient: matmul(basis.mT, gradient), task, task_grad)
    return LowGradients(matmul(shared.mT, shared_grad), low, request.sizes, progress)


def _with_waiting(refreshed: Refreshed, state: BranchState, request: Request, refresh: Refresh) -> Refreshed:
    """With task branches whose gradients came merged in this step: they wait for the next that are not."""
    if len(refreshed.pending) == len(state.pending):
        return refreshed
    space = room(request.masks, state.pending.shape)[1:]
    due = refresh.due | members_due(request.turns, refresh)
    later = state.pending[1:] if state.task_basis is None else (state.pending[1:] | due) & space
    return refreshed._replace(pending=jnp.concatenate([refreshed.pending, later]))
