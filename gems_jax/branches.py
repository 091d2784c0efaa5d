"""One step of a group of equal kernels: refresh, project, inner update, fuse."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gems_jax.orthonormal import matmul, norms
from gems_jax.plan import Kernel
from gems_jax.projection import kept_side_first, project_stack
from gems_jax.stacks import map_stack, mesh_of_devices
from gems_jax.subspace import Decomposition, Frame, make_basis

PyTree = Any


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


class Refresh(NamedTuple):
    """How bases are refreshed: static choices, and this step's flags.

    Attributes:
      method, signs, moments, complementary: as in `gems_jax.gems`.
      stagger_every: steps over which a stack's refresh is spread, ``None``: all at once.
      step: ``[]`` int32.
      due: ``[]`` bool, whether a refresh is scheduled in this step (with ``stagger``: of everything).
      key: random key.
    """

    method: Decomposition
    signs: Literal["canonical", "align"]
    moments: Literal["keep", "reset"]
    complementary: bool
    stagger_every: int | None
    step: jax.Array
    due: jax.Array
    key: jax.Array


class Presence(NamedTuple):
    """Which branches have something to learn from: ``tasks: [T]`` bool, ``shared: []`` bool."""

    tasks: jax.Array
    shared: jax.Array


class Steps(NamedTuple):
    """What the branches of a group propose, before gates: everything `fuse` and the diagnostics need.

    Attributes:
      shared, tasks: low-rank updates ``[k, r, q]`` and ``[T, k, r_t, q]`` (or ``None``).
      energy: ``[1 + T]`` squared norms of the low-rank gradients.
      progress: ``[T]``, see `gems_jax.gates.Signals`.
      refreshed: ``[]`` int32 number of bases replaced.
    """

    shared: jax.Array
    tasks: jax.Array | None
    energy: jax.Array
    progress: jax.Array
    refreshed: jax.Array


def lift_inner(inner: optax.GradientTransformationExtraArgs, depth: int) -> tuple[Callable, Callable]:
    """The inner transform for stacks: each kernel's low-rank gradient is updated on its own.

    So a stacked ``[L, m, n]`` kernel behaves as ``L`` separate ones, also under transforms that look at a
    whole array (factored moments, norms).

    Args:
      inner: any optax transform.
      depth: number of leading axes to map over.

    Returns:
      ``init(params)`` and ``update(grads, state, params, extra)``.
    """
    init = inner.init

    def update(grads: jax.Array, state: PyTree, params: jax.Array, extra: dict[str, Any]) -> tuple[jax.Array, PyTree]:
        return inner.update(grads, state, params, **extra)

    for _ in range(depth):
        init = jax.vmap(init)
        update = jax.vmap(update, in_axes=(0, 0, 0, None))
    return init, update


def norm_squared(x: jax.Array, axes: int) -> jax.Array:
    """Sum of squares over the last ``axes`` axes."""
    return jnp.sum(x * x, axis=tuple(range(-axes, 0)))


def has_basis(basis: jax.Array) -> jax.Array:
    """Whether there is a basis: ``[..., p, r] -> [...]``; before the first refresh all entries are 0."""
    return jnp.any(basis[..., 0] != 0, axis=-1)


def where_leading(condition: jax.Array, new: PyTree, old: PyTree) -> PyTree:
    """``where`` on trees of arrays whose leading axes are those of ``condition``."""

    def select(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.where(condition.reshape(*condition.shape, *(1,) * (a.ndim - condition.ndim)), a, b)

    return jax.tree.map(select, new, old)


Bases = tuple[jax.Array, jax.Array | None]  # shared [k, p, r], task [T, k, p, r_t]
Gradients = tuple[jax.Array, jax.Array | None]  # shared [k, p, q], task [T, k, p, q]
Masks = tuple[jax.Array | None, jax.Array | None]  # of columns, [k, r] and [k, r_t]


def compute_bases(
    old: Bases, gradients: Gradients, do: jax.Array, frame: Frame, masks: Masks, refresh: Refresh
) -> tuple[jax.Array, jax.Array | None, jax.Array]:
    """New bases of the branches in ``do: [1 + T, k]`` whose gradients yield one, and which those are."""

    def one(varying: Any, shared: Any) -> tuple[jax.Array, jax.Array]:
        gradient, previous = varying
        factor, exclude, columns = shared
        return make_basis(
            gradient,
            previous.shape[-1],
            Frame(factor, frame.complement),
            method=refresh.method,
            signs=refresh.signs,
            previous=previous,
            has_previous=has_basis(previous),
            exclude=exclude,
            columns=columns,
            key=refresh.key,
        )

    def stack(depth: int, varying: Any, shared: Any) -> tuple[jax.Array, jax.Array]:
        if refresh.method != "svd" and mesh_of_devices():
            # Thin blocks or Gram matrices travel, gradients stay: no device needs a whole one.
            return one(varying, shared)
        return map_stack(one, depth, varying, shared)

    shared, replaced = stack(1, (gradients[0], old[0]), (frame.factor, None, masks[0]))
    done = (replaced & do[0])[None]
    shared = where_leading(done[0], shared, old[0])
    if old[1] is None or gradients[1] is None:
        return shared, None, done
    exclude = shared if refresh.complementary else None
    task, replaced = stack(2, (gradients[1], old[1]), (frame.factor, exclude, masks[1]))
    task_done = replaced & do[1:]
    return shared, where_leading(task_done, task, old[1]), jnp.concatenate([done, task_done])


class Request(NamedTuple):
    """What a group's bases are refreshed from.

    Attributes:
      old: bases in force.
      gradients: to make new ones from.
      pending: ``[1 + T, k]`` bool, branches that wait (``[1, k]`` without task branches).
      usable: the same shape, branches whose gradient is finite and not zero.
      frame: factor ``[k, p, c]``, or none.
      masks: of the columns there is room for.
    """

    old: Bases
    gradients: Gradients
    pending: jax.Array
    usable: jax.Array
    frame: Frame
    masks: Masks


class Refreshed(NamedTuple):
    """A group's bases, the branches that wait now and those replaced, ``[1 + T, k]``."""

    bases: Bases
    pending: jax.Array
    done: jax.Array


Found = tuple[jax.Array, jax.Array | None, jax.Array]  # shared and task bases, branches replaced


def refresh_groups(requests: Sequence[Request], refresh: Refresh) -> list[Refreshed]:
    """Replaces the bases that are due or waiting, of all groups; one scalar decides whether anything is computed.

    Args:
      requests: one a group.
      refresh: when and how.
    """
    wanted = [(request.pending | refresh.due) & _room(request.masks, request.pending.shape) for request in requests]
    found = _where_any(
        [want & request.usable for want, request in zip(wanted, requests, strict=True)],
        [functools.partial(_everything, request, refresh) for request in requests],
        [functools.partial(_nothing, request.old) for request in requests],
    )
    refreshed = [
        Refreshed((shared, task), want & ~done, done) for (shared, task, done), want in zip(found, wanted, strict=True)
    ]
    if refresh.stagger_every is None:
        return refreshed
    stacks = [i for i, request in enumerate(requests) if request.old[0].shape[0] > 1]
    few = _refresh_a_few([requests[i] for i in stacks], [refreshed[i] for i in stacks], refresh, refresh.stagger_every)
    for i, new in zip(stacks, few, strict=True):
        refreshed[i] = new
    return refreshed


def _where_any(
    flags: Sequence[jax.Array],
    compute: Sequence[Callable[[jax.Array], Found]],
    keep: Sequence[Callable[[jax.Array], Found]],
) -> list[Found]:
    """``compute(flags)`` of each group that has a flag set, ``keep(flags)`` of the others.

    In most steps no group has one, and a single scalar says so: a device that decides for each group would wait for
    the host, or stop its queue, as often as there are groups.
    """

    def each(flags: Sequence[jax.Array]) -> list[Found]:
        return [jax.lax.cond(jnp.any(do), *how, do) for do, *how in zip(flags, compute, keep, strict=True)]

    def none(flags: Sequence[jax.Array]) -> list[Found]:
        return [how(do) for do, how in zip(flags, keep, strict=True)]

    if len(flags) < 2:
        return each(flags)
    return jax.lax.cond(jnp.any(jnp.stack([jnp.any(do) for do in flags])), each, none, list(flags))


def _everything(request: Request, refresh: Refresh, do: jax.Array) -> Found:
    return compute_bases(request.old, request.gradients, do, request.frame, request.masks, refresh)


def _nothing(bases: Bases, do: jax.Array) -> Found:
    return (*bases, jnp.zeros_like(do))


def _room(masks: Masks, shape: tuple[int, ...]) -> jax.Array:
    """``[1 + T, k]`` bool: branches with room for any column; the others have nothing to wait for."""
    shared, task = (
        jnp.ones(shape[1:], bool) if mask is None else jnp.any(jnp.asarray(mask), axis=-1) for mask in masks
    )
    return jnp.concatenate([shared[None], jnp.broadcast_to(task, (shape[0] - 1, *shape[1:]))])


def _refresh_a_few(
    requests: Sequence[Request], now: Sequence[Refreshed], refresh: Refresh, every: int
) -> list[Refreshed]:
    """The members of each stack whose turn it is, by dynamic slice."""
    dues, starts, chunks = [], [], []
    for request in requests:
        size = request.old[0].shape[0]
        chunk = -(-size // every)
        first = (refresh.step % every) * chunk
        start = jnp.minimum(first, size - chunk)
        turn = (refresh.step > 0) & (first < size)
        dues.append(turn & (jnp.arange(size) >= start) & (jnp.arange(size) < start + chunk))
        starts.append(start)
        chunks.append(chunk)
    rooms = [_room(request.masks, request.pending.shape) for request in requests]
    found = _where_any(
        [
            due & request.usable & ~one.done & room
            for due, request, one, room in zip(dues, requests, now, rooms, strict=True)
        ],
        [
            functools.partial(_few, request._replace(old=one.bases), refresh, start, chunk)
            for request, one, start, chunk in zip(requests, now, starts, chunks, strict=True)
        ],
        [functools.partial(_nothing, one.bases) for one in now],
    )
    return [
        Refreshed((shared, task), (one.pending | (due & room)) & ~replaced & ~one.done, one.done | replaced)
        for (shared, task, replaced), one, due, room in zip(found, now, dues, rooms, strict=True)
    ]


def _few(request: Request, refresh: Refresh, start: jax.Array, chunk: int, do: jax.Array) -> Found:
    """New bases of ``chunk`` members of a stack."""

    def cut(x: jax.Array, axis: int) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(x, start, chunk, axis)

    def maybe_cut(x: jax.Array | None, axis: int) -> jax.Array | None:
        return None if x is None else cut(x, axis)

    def paste(x: jax.Array, part: jax.Array, axis: int) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(x, part, start, axis)

    old, gradients, masks = request.old, request.gradients, request.masks
    shared, task, done = compute_bases(
        (cut(old[0], 0), maybe_cut(old[1], 1)),
        (cut(gradients[0], 0), maybe_cut(gradients[1], 1)),
        cut(do, 1),
        request.frame._replace(factor=maybe_cut(request.frame.factor, 0)),
        (maybe_cut(masks[0], 0), maybe_cut(masks[1], 0)),
        refresh,
    )
    pasted = None if old[1] is None or task is None else paste(old[1], task, 1)
    return paste(old[0], shared, 0), pasted, paste(jnp.zeros_like(do), done, 1)


def run_inner(
    basis: jax.Array,
    gradient: jax.Array,
    weights: jax.Array,
    state: PyTree,
    active: jax.Array,
    fresh: jax.Array,
    inner: optax.GradientTransformationExtraArgs,
    moments: str,
    extra: dict[str, Any],
) -> tuple[jax.Array, PyTree, jax.Array]:
    """``L = U^T G``, ``X = inner(L)``; inactive branches take no step and their state stays.

    Returns:
      ``(X, state, L)``.
    """
    init, update = lift_inner(inner, basis.ndim - 2)
    on = active[..., None, None]
    low = jnp.where(on, matmul(basis.mT, gradient), 0)
    # Where the gradient's rank is below the basis', surplus columns meet nothing but rounding, which Adam would
    # blow up to full-size steps: no digit of these rows means anything.
    rounding = 16 * jnp.finfo(low.dtype).eps * norms(gradient)
    low = jnp.where(norms(low, -1) > rounding, low, 0)
    low_weights = matmul(basis.mT, weights)
    if moments == "reset":
        state = where_leading(fresh, init(low_weights), state)
    step, stepped = update(low, state, low_weights, extra)
    return jnp.where(on, step.astype(low.dtype), 0), where_leading(active, stepped, state), low


def request_refresh(
    group: Sequence[Kernel],
    state: BranchState,
    shared_grad: jax.Array,
    task_grad: jax.Array | None,
    present: Presence,
    frame: Frame,
    refresh: Refresh,
) -> Request:
    """What a group's bases are refreshed from in this step; arguments as of `step_group`."""

    def alive(gradient: jax.Array, there: jax.Array) -> jax.Array:
        squares = norm_squared(gradient, 2)
        return there & present.shared & jnp.isfinite(squares) & (squares > 0)

    if frame.factor is not None:
        size = state.shared_basis.shape[0]
        frame = frame._replace(factor=jnp.broadcast_to(frame.factor, (size, *frame.factor.shape[-2:])))
    masks = _column_masks(group, refresh.complementary)
    usable = alive(shared_grad, present.shared)[None]
    if task_grad is None or state.task_basis is None:
        return Request((state.shared_basis, None), (shared_grad, None), state.pending[:1], usable, frame, masks)
    usable = jnp.concatenate([usable, alive(task_grad, present.tasks[:, None])])
    bases = (state.shared_basis, state.task_basis)
    return Request(bases, (shared_grad, task_grad), state.pending, usable, frame, masks)


def step_group(
    state: BranchState,
    request: Request,
    refreshed: Refreshed,
    weights: jax.Array,
    present: Presence,
    refresh: Refresh,
    inner: optax.GradientTransformationExtraArgs,
    extra: dict[str, Any],
) -> tuple[Steps, BranchState]:
    """Runs the inner transform in every branch of a group of equal kernels, in the bases that are now in force.

    ``L_b = U_b^T G_b``, ``X_b = inner(L_b)`` (arXiv 2601.09496, section 3). The state of a branch whose task
    is absent, or that has no basis yet, is frozen and its step is 0.

    Args:
      state: see `BranchState`.
      request: of this step, see `request_refresh`; its gradients are those stepped on: ``[k, p, q]`` ``G_s`` and
        ``[T, k, p, q]``, or ``None`` where there are no task branches in this step; kept side first, float32 or
        float64.
      refreshed: what came of it.
      weights: ``[k, p, q]`` the kernels themselves, for inner transforms that look at them.
      present: which tasks count.
      refresh: when and how bases are refreshed.
      inner: the inner transform.
      extra: extra arguments handed to it.

    Returns:
      ``(Steps, BranchState)``.
    """
    num_tasks = state.pending.shape[0] - 1
    shared_grad, task_grad = request.gradients
    (shared, task), pending, done = refreshed
    progress = jnp.zeros((num_tasks,), jnp.float32)
    if state.previous is not None and state.task_basis is not None:
        seen = matmul(state.task_basis.mT, shared_grad[None])
        progress = jnp.sum(seen * state.previous, axis=(1, 2, 3)).astype(jnp.float32)
    if task_grad is None or state.task_basis is None:
        # Task branches whose gradients came merged in this step wait for the next that are not.
        room = _room(request.masks, state.pending.shape)[1:]
        later = state.pending[1:] if state.task_basis is None else (state.pending[1:] | refresh.due) & room
        state = state._replace(shared_basis=shared, pending=jnp.concatenate([pending, later]))
        energy = jnp.zeros((num_tasks,), shared_grad.dtype)
        tasks = None
    else:
        task = state.task_basis if task is None else task
        active = has_basis(task) & present.tasks[:, None] & present.shared
        tasks, task_inner, low = run_inner(
            task, task_grad, weights, state.task_inner, active, done[1:], inner, refresh.moments, extra
        )
        energy = jnp.sum(low * low, axis=(1, 2, 3))
        previous = None if state.previous is None else jnp.where(present.shared, tasks, state.previous)
        state = state._replace(
            shared_basis=shared, task_basis=task, task_inner=task_inner, pending=pending, previous=previous
        )
    active = has_basis(state.shared_basis) & present.shared
    step, shared_inner, low = run_inner(
        state.shared_basis, shared_grad, weights, state.shared_inner, active, done[0], inner, refresh.moments, extra
    )
    energy = jnp.concatenate([jnp.sum(low * low)[None], energy]).astype(jnp.float32)
    steps = Steps(step, tasks, energy, progress, jnp.sum(done, dtype=jnp.int32))
    return steps, state._replace(shared_inner=shared_inner)


def _column_masks(group: Sequence[Kernel], complementary: bool) -> Masks:
    """Masks of the columns each kernel's null space has room for, ``[k, r]`` and ``[k, r_t]``."""
    kernel = group[0]

    def stacked(rank: int, used: int) -> jax.Array | None:
        masks = [k.columns(rank, used) for k in group]
        if rank == 0 or all(mask is None for mask in masks):
            return None
        return jnp.asarray(np.concatenate([np.ones((1, rank), bool) if m is None else m for m in masks]))

    return stacked(kernel.rank, 0), stacked(kernel.task_rank, kernel.rank if complementary else 0)


def fuse(
    state: BranchState,
    steps: Steps,
    gates: jax.Array,
    scale: float | jax.Array,
    across: Frame,
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
        low = kept_side_first(project_stack(kept_side_first(low, "out"), across), "out")
    return matmul(basis, jnp.asarray(scale, low.dtype) * low)
