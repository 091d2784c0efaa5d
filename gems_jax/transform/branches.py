"""One step of a group of equal kernels, in the bases in force: inner update, fuse."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gems_jax.linalg.orthonormal import matmul, norms
from gems_jax.linalg.projection import Projector, project_stack, projected_axis_first
from gems_jax.linalg.sizes import Size, limited, squares
from gems_jax.transform.refresh import Refreshed, has_basis, where_leading
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
      recovered: ``[k]`` norms of what the former step added from outside the basis, or ``None``.
    """

    shared_basis: jax.Array
    task_basis: jax.Array | None
    shared_inner: PyTree
    task_inner: PyTree
    pending: jax.Array
    previous: jax.Array | None
    recovered: jax.Array | None


class TaskMask(NamedTuple):
    """Which branches have something to learn from: ``tasks: [T]`` bool, ``shared: []`` bool."""

    tasks: jax.Array
    shared: jax.Array


class Steps(NamedTuple):
    """Steps that the branches of a group propose, before gates: everything `fuse` and the diagnostics need.

    Attributes:
      shared, tasks: low-rank updates ``[k, r, q]`` and ``[T, k, r_t, q]`` (or ``None``).
      active: ``[k]`` bool, whether the shared branch took a step.
      energy: ``[1 + T]`` squared norms of the low-rank gradients, brought near 1 (`GradientDiagnostics.powers`).
      progress: ``[T]``, see `gems_jax.transform.gates.Signals`.
      refreshed, failed: ``[]`` int32 number of bases replaced, and of those that should have been.
    """

    shared: jax.Array
    tasks: jax.Array | None
    active: jax.Array
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


class LowGradients(NamedTuple):
    """A group's low-rank gradients, in the bases that are now in force.

    Attributes:
      shared: ``[k, r, q]`` ``U_s^T G_s``.
      task: ``[T, k, r_t, q]`` ``U_t^T G_t``, or ``None`` where there are no task branches in this step.
      sizes: of the whole gradients, ``[k]`` and ``[T, k]``.
      progress: ``[T]``, see `gems_jax.transform.gates.Signals`.
    """

    shared: jax.Array
    task: jax.Array | None
    sizes: tuple[Size, Size | None]
    progress: jax.Array


def run_inner(
    basis: jax.Array,
    low: jax.Array,
    size: Size,
    weights: jax.Array,
    state: PyTree,
    active: jax.Array,
    fresh: jax.Array,
    settings: Settings,
    extra: dict[str, Any],
) -> tuple[jax.Array, PyTree, jax.Array]:
    """``X = inner(L)``; inactive branches take no step and their state stays.

    Returns:
      ``(X, state, L)``, ``L`` as it was stepped on.
    """
    init, update = lift_inner(settings.inner, basis.ndim - 2)
    on = active[..., None, None]
    low = jnp.where(on, low, 0)
    # Where the gradient's rank is below the basis', surplus columns meet nothing but rounding, which Adam would
    # blow up to full-size steps: no digit of these rows means anything.
    size = Size(*(x[..., None, None] for x in size))
    rounding = 16 * jnp.finfo(low.dtype).eps * jnp.sqrt(size.squares)
    low = jnp.where(norms(low * size.power, -1) > rounding, low, 0)
    low_weights = matmul(basis.mT, weights)
    if settings.moments == "reset":
        state = where_leading(fresh, init(low_weights), state)
    step, stepped = update(limited(low, size.norm()), state, low_weights, extra)
    return jnp.where(on, step.astype(low.dtype), 0), where_leading(active, stepped, state), low


def step_group(
    state: BranchState,
    lows: LowGradients,
    refreshed: Refreshed,
    weights: jax.Array,
    present: TaskMask,
    powers: jax.Array,
    settings: Settings,
    extra: dict[str, Any],
) -> tuple[Steps, BranchState]:
    """Runs the inner transform in every branch of a group of equal kernels, in the bases that are now in force.

    ``X_b = inner(L_b)`` (arXiv 2601.09496, section 3). The state of a branch whose task is absent, or that has no
    basis yet, is frozen and its step is 0.

    Args:
      state: see `BranchState`.
      lows: the low-rank gradients.
      refreshed: the bases they are in, all branches that wait among its flags.
      weights: ``[k, p, q]`` the kernels themselves, for inner transforms that look at them.
      present: which tasks count.
      powers: ``[1 + T]`` powers of two that bring the shared and the tasks' gradients near 1.
      settings: of the transform.
      extra: extra arguments handed to the inner transform.

    Returns:
      ``(Steps, BranchState)``.
    """
    num_tasks = len(state.pending) - 1
    (shared, task), pending, done, failed = refreshed
    powers = powers.astype(lows.shared.dtype)
    state = state._replace(shared_basis=shared, pending=pending)
    tasks, energy = None, jnp.zeros((num_tasks,), lows.shared.dtype)
    if lows.task is not None and lows.sizes[1] is not None and task is not None:
        active = has_basis(task) & present.tasks[:, None] & present.shared
        tasks, task_inner, low = run_inner(
            task, lows.task, lows.sizes[1], weights, state.task_inner, active, done[1:], settings, extra
        )
        energy = squares(low * powers[1:, None, None, None], 3)
        previous = None if state.previous is None else jnp.where(present.shared, tasks, state.previous)
        state = state._replace(task_basis=task, task_inner=task_inner, previous=previous)
    active = has_basis(shared) & present.shared
    step, shared_inner, low = run_inner(
        shared, lows.shared, lows.sizes[0], weights, state.shared_inner, active, done[0], settings, extra
    )
    energy = jnp.concatenate([squares(low * powers[0], 3)[None], energy])
    counts = (jnp.sum(which, dtype=jnp.int32) for which in (done, failed))
    steps = Steps(step, tasks, active, energy, lows.progress, *counts)
    return steps, state._replace(shared_inner=shared_inner)


def fuse(
    state: BranchState,
    steps: Steps,
    gates: jax.Array,
    scale: float | jax.Array,
    across: Projector,
    side: str,
    outside: jax.Array | None = None,
) -> jax.Array:
    """``dW = scale * (U_s X_s + sum_t g_t U_t X_t)``, one product (arXiv 2601.09496, section 3).

    Args:
      state: with the bases in force.
      steps: low-rank updates.
      gates: ``[T]``.
      scale: of the whole update.
      across: factor on the other axis, where the null space is not on the bases' side: ``X N`` is taken.
      side: ``"in"`` or ``"out"``, that the bases span.
      outside: ``[k, p, q]`` what is added to it from outside the basis, before ``scale``.

    Returns:
      ``[k, in, out]``.
    """
    basis, low = state.shared_basis, steps.shared
    if steps.tasks is not None and state.task_basis is not None:
        gated = gates.astype(low.dtype)[:, None, None, None] * steps.tasks
        k, p, _ = basis.shape
        basis = jnp.concatenate([basis, jnp.moveaxis(state.task_basis, 0, 2).reshape(k, p, -1)], axis=-1)
        low = jnp.concatenate([low, jnp.moveaxis(gated, 0, 1).reshape(k, -1, low.shape[-1])], axis=1)
    if across.factor is not None:
        low = projected_axis_first(project_stack(projected_axis_first(low, "out"), across), "out")
    low = jnp.asarray(scale, low.dtype) * low
    update = matmul(basis, low) if side == "in" else matmul(low.mT, basis.mT)
    if outside is not None:
        update += projected_axis_first(jnp.asarray(scale, outside.dtype) * outside, side)
    return update
