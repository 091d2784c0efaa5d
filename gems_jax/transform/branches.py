"""One step of a group of equal kernels, in the bases in force: project, inner update, fuse."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gems_jax.linalg.orthonormal import matmul, norms
from gems_jax.linalg.projection import Projector, project_stack, projected_axis_first
from gems_jax.linalg.scales import Size, limited, squares
from gems_jax.transform.refresh import (
    Refresh,
    Refreshed,
    Request,
    has_basis,
    members_due,
    room,
    where_leading,
)
from gems_jax.transform.settings import Settings
from gems_jax.types import PyTree


class BranchState(NamedTuple):
    """State of a group's branches, kernels stacked: ``shared`` ``[k, ...]``, ``task`` ``[T, k, ...]``.

    Attributes:
      shared_basis: ``[k, p, r]``, zeros before the first refresh.
      task_basis: ``[T, k, p, r_t]`` or ``None``.
      shared_inner: inner state, ``[k, ...]``.
      task_inner: inner state, ``[T, k, ...]``, or ``None``.
      pending: ``[1 + T, k]`` bool, branches that wait for a usable gradient.
      previous: ``[T, k, r_t, q]`` the former step's low-rank updates, for learned gates, or ``None``.
    """

    shared_basis: jax.Array
    task_basis: jax.Array | None
    shared_inner: PyTree
    task_inner: PyTree
    pending: jax.Array
    previous: jax.Array | None


class TaskMask(NamedTuple):
    """Which branches have something to learn from: ``tasks: [T]`` bool, ``shared: []`` bool."""

    tasks: jax.Array
    shared: jax.Array


class Steps(NamedTuple):
    """Steps that the branches of a group propose, before gates: everything `fuse` and the diagnostics need.

    Attributes:
      shared, tasks: low-rank updates ``[k, r, q]`` and ``[T, k, r_t, q]`` (or ``None``).
      energy: ``[1 + T]`` squared norms of the low-rank gradients, brought near 1 (`GradientDiagnostics.scales`).
      progress: ``[T]``, see `gems_jax.transform.gates.Signals`.
      refreshed, failed: ``[]`` int32 number of bases replaced, and of those that should have been.
    """

    shared: jax.Array
    tasks: jax.Array | None
    energy: jax.Array
    progress: jax.Array
    refreshed: jax.Array
    failed: jax.Array


def lift_inner(
    inner: optax.GradientTransformation, depth: int
) -> tuple[Callable[..., PyTree], Callable[..., tuple[jax.Array, PyTree]]]:
    """The inner transform for stacks: each kernel's low-rank gradient is updated on its own.

    So a stacked ``[L, m, n]`` kernel behaves as ``L`` separate ones, also under transforms that look at a
    whole array (factored moments, norms).

    Args:
      inner: any optax transform.
      depth: number of leading axes to map over.

    Returns:
      ``init(params)`` and ``update(grads, state, params, extra)``.
    """
    init, with_extra = inner.init, optax.with_extra_args_support(inner)

    def update(grads: jax.Array, state: PyTree, params: jax.Array, extra: dict[str, Any]) -> tuple[jax.Array, PyTree]:
        return with_extra.update(grads, state, params, **extra)

    for _ in range(depth):
        init = jax.vmap(init)
        update = jax.vmap(update, in_axes=(0, 0, 0, None))
    return init, update


def run_inner(
    basis: jax.Array,
    gradient: jax.Array,
    size: Size,
    weights: jax.Array,
    state: PyTree,
    active: jax.Array,
    fresh: jax.Array,
    settings: Settings,
    extra: dict[str, Any],
) -> tuple[jax.Array, PyTree, jax.Array]:
    """``L = U^T G``, ``X = inner(L)``; inactive branches take no step and their state stays.

    Returns:
      ``(X, state, L)``.
    """
    init, update = lift_inner(settings.inner, basis.ndim - 2)
    on = active[..., None, None]
    low = jnp.where(on, matmul(basis.mT, gradient), 0)
    # Where the gradient's rank is below the basis', surplus columns meet nothing but rounding, which Adam would
    # blow up to full-size steps: no digit of these rows means anything.
    size = Size(*(x[..., None, None] for x in size))
    rounding = 16 * jnp.finfo(low.dtype).eps * jnp.sqrt(size.squares)
    low = jnp.where(norms(low * size.scale, -1) > rounding, low, 0)
    low_weights = matmul(basis.mT, weights)
    if settings.moments == "reset":
        state = where_leading(fresh, init(low_weights), state)
    step, stepped = update(limited(low, size.norm()), state, low_weights, extra)
    return jnp.where(on, step.astype(low.dtype), 0), where_leading(active, stepped, state), low


def step_group(
    state: BranchState,
    request: Request,
    refreshed: Refreshed,
    weights: jax.Array,
    present: TaskMask,
    scales: jax.Array,
    refresh: Refresh,
    extra: dict[str, Any],
) -> tuple[Steps, BranchState]:
    """Runs the inner transform in every branch of a group of equal kernels, in the bases that are now in force.

    ``L_b = U_b^T G_b``, ``X_b = inner(L_b)`` (arXiv 2601.09496, section 3). The state of a branch whose task
    is absent, or that has no basis yet, is frozen and its step is 0.

    Args:
      state: see `BranchState`.
      request: of this step; its gradients are those stepped on: ``[k, p, q]`` ``G_s`` and ``[T, k, p, q]``, or ``None``
        where there are no task branches in this step; projected axis first, float32 or float64.
      refreshed: the bases after the request.
      weights: ``[k, p, q]`` the kernels themselves, for inner transforms that look at them.
      present: which tasks count.
      scales: ``[1 + T]`` powers of two that bring the shared and the tasks' gradients near 1.
      refresh: when and how bases are refreshed.
      extra: extra arguments handed to the inner transform.

    Returns:
      ``(Steps, BranchState)``.
    """
    num_tasks = state.pending.shape[0] - 1
    (shared_grad, task_grad), (shared_size, task_size) = request.gradients, request.sizes
    (shared, task), pending, done, failed = refreshed
    scales = scales.astype(shared_grad.dtype)
    progress = jnp.zeros((num_tasks,), shared_grad.dtype)
    if state.previous is not None and state.task_basis is not None:
        seen = matmul(state.task_basis.mT, shared_grad[None])
        progress = jnp.sum(seen * state.previous, axis=(1, 2, 3))
    if task_grad is None or task_size is None or state.task_basis is None:
        # Task branches whose gradients came merged in this step wait for the next that are not.
        space = room(request.masks, state.pending.shape)[1:]
        due = refresh.due | members_due(request.turns, refresh)
        later = state.pending[1:] if state.task_basis is None else (state.pending[1:] | due) & space
        state = state._replace(shared_basis=shared, pending=jnp.concatenate([pending, later]))
        energy = jnp.zeros((num_tasks,), shared_grad.dtype)
        tasks = None
    else:
        task = state.task_basis if task is None else task
        active = has_basis(task) & present.tasks[:, None] & present.shared
        tasks, task_inner, low = run_inner(
            task, task_grad, task_size, weights, state.task_inner, active, done[1:], refresh.settings, extra
        )
        energy = squares(low * scales[1:, None, None, None], 3)
        previous = None if state.previous is None else jnp.where(present.shared, tasks, state.previous)
        state = state._replace(
            shared_basis=shared, task_basis=task, task_inner=task_inner, pending=pending, previous=previous
        )
    active = has_basis(state.shared_basis) & present.shared
    step, shared_inner, low = run_inner(
        state.shared_basis,
        shared_grad,
        shared_size,
        weights,
        state.shared_inner,
        active,
        done[0],
        refresh.settings,
        extra,
    )
    energy = jnp.concatenate([squares(low * scales[0], 3)[None], energy])
    counts = (jnp.sum(which, dtype=jnp.int32) for which in (done, failed))
    steps = Steps(step, tasks, energy, progress, *counts)
    return steps, state._replace(shared_inner=shared_inner)


def fuse(
    state: BranchState,
    steps: Steps,
    gates: jax.Array,
    scale: float | jax.Array,
    across: Projector,
) -> jax.Array:
    """``dW = scale * (U_s X_s + sum_t g_t U_t X_t)``, one product (arXiv 2601.09496, section 3).

    Args:
      state: with the bases in force.
      steps: low-rank updates.
      gates: ``[T]``.
      scale: of the whole update.
      across: factor on the other axis, where the null space is not on the bases' side: ``X N`` is taken.

    Returns:
      ``[k, p, q]``.
    """
    basis, low = state.shared_basis, steps.shared
    if steps.tasks is not None and state.task_basis is not None:
        gated = gates.astype(low.dtype)[:, None, None, None] * steps.tasks
        k, p, _ = basis.shape
        basis = jnp.concatenate([basis, jnp.moveaxis(state.task_basis, 0, 2).reshape(k, p, -1)], axis=-1)
        low = jnp.concatenate([low, jnp.moveaxis(gated, 0, 1).reshape(k, -1, low.shape[-1])], axis=1)
    if across.factor is not None:
        low = projected_axis_first(project_stack(projected_axis_first(low, "out"), across), "out")
    return matmul(basis, jnp.asarray(scale, low.dtype) * low)
