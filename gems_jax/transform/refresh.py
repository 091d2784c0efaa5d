"""When and how the bases of all groups of kernels are refreshed: one decision a step, and what follows from it."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gems_jax.linalg.projection import Projector
from gems_jax.linalg.scales import Size
from gems_jax.linalg.stacks import map_stack, mesh_of_devices
from gems_jax.linalg.subspace import Decomposition, make_basis
from gems_jax.transform.settings import Settings
from gems_jax.types import PyTree


class Refresh(NamedTuple):
    """How and whether bases are refreshed in a step: static choices, and this step's flags.

    Attributes:
      settings: of the transform.
      method: of decomposition, ``"auto"`` resolved.
      stagger_every: steps over which the refreshes of all kernels are spread, ``None``: all at once.
      step: ``[]`` int32.
      due: ``[]`` bool, whether a refresh is scheduled in this step (with ``stagger``: of everything).
      key: random key.
    """

    settings: Settings
    method: Decomposition
    stagger_every: int | None
    step: jax.Array
    due: jax.Array
    key: jax.Array


def refresh_at(count: jax.Array, settings: Settings) -> Refresh:
    """The `Refresh` of the step after ``count`` others: before the first update, then every so many."""
    every = settings.refresh_every
    interval: int | None = None
    if callable(every):
        due = jnp.asarray(every(count), bool)
    elif settings.stagger:
        interval, due = int(every), count == 0
    else:
        due = count % int(every) == 0
    method: Any = settings.decomposition
    if method == "auto":
        method = "subspace" if jax.default_backend() == "tpu" else "eigh"
    return Refresh(settings, method, interval, count, due, jax.random.key(settings.seed))


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
    old: Bases, gradients: Gradients, do: jax.Array, projector: Projector, masks: Masks, refresh: Refresh
) -> tuple[jax.Array, jax.Array | None, jax.Array]:
    """New bases of the branches in ``do: [1 + T, k]`` whose gradients yield one, and which those are."""

    def one(varying: Any, shared: Any) -> tuple[jax.Array, jax.Array]:
        gradient, previous = varying
        factor, exclude, columns = shared
        return make_basis(
            gradient,
            previous.shape[-1],
            Projector(factor, projector.complement),
            method=refresh.method,
            signs=refresh.settings.signs,
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

    shared, replaced = stack(1, (gradients[0], old[0]), (projector.factor, None, masks[0]))
    done = (replaced & do[0])[None]
    shared = where_leading(done[0], shared, old[0])
    if old[1] is None or gradients[1] is None:
        return shared, None, done
    exclude = shared if refresh.settings.complementary else None
    task, replaced = stack(2, (gradients[1], old[1]), (projector.factor, exclude, masks[1]))
    task_done = replaced & do[1:]
    return shared, where_leading(task_done, task, old[1]), jnp.concatenate([done, task_done])


class Request(NamedTuple):
    """A group's bases and the gradients that they are refreshed from, see `gems_jax.transform.refresh_request`.

    Attributes:
      old: bases in force.
      gradients: to make new ones from.
      sizes: of these.
      pending: ``[1 + T, k]`` bool, branches that wait (``[1, k]`` without task branches).
      usable: the same shape, branches whose gradient is finite and not zero.
      projector: factor ``[k, p, c]``, or none.
      masks: of the columns there is room for.
      turns: of each of the ``k``, the step of an interval in which it is refreshed where refreshes are staggered,
        in order: see `gems_jax.transform.plan.Plan.turns`.
    """

    old: Bases
    gradients: Gradients
    sizes: tuple[Size, Size | None]
    pending: jax.Array
    usable: jax.Array
    projector: Projector
    masks: Masks
    turns: tuple[int, ...]


class Refreshed(NamedTuple):
    """A group's bases, and which branches wait now, were replaced and could not be, ``[1 + T, k]``.

    A branch waits for a gradient to be decomposed. Where there was one, and no basis came of it, it is not asked again
    before the next refresh: one that never has a basis would have all of its shape decomposed in every step.
    """

    bases: Bases
    pending: jax.Array
    done: jax.Array
    failed: jax.Array


NewBases = tuple[jax.Array, jax.Array | None, jax.Array]  # shared and task bases, branches replaced


def refresh_groups(requests: Sequence[Request], refresh: Refresh) -> list[Refreshed]:
    """Replaces the bases that are due or waiting, of all groups; one scalar decides whether anything is computed.

    Args:
      requests: one a group.
      refresh: when and how.
    """
    wanted = [(request.pending | refresh.due) & room(request.masks, request.pending.shape) for request in requests]
    new_bases = _where_any(
        [want & request.usable for want, request in zip(wanted, requests, strict=True)],
        [functools.partial(_everything, request, refresh) for request in requests],
        [functools.partial(_nothing, request.old) for request in requests],
    )
    refreshed = [
        Refreshed((shared, task), want & ~request.usable, done, want & request.usable & ~done)
        for (shared, task, done), want, request in zip(new_bases, wanted, requests, strict=True)
    ]
    return refreshed if refresh.stagger_every is None else _refresh_a_few(requests, refreshed, refresh)


def members_due(turns: Sequence[int], refresh: Refresh) -> jax.Array:
    """``[k]`` bool: the members of a stack whose turn it is in this step; none in the first, which refreshes all."""
    if refresh.stagger_every is None:
        return jnp.zeros((len(turns),), bool)
    return (refresh.step > 0) & (jnp.asarray(turns) == refresh.step % refresh.stagger_every)


def _where_any(
    flags: Sequence[jax.Array],
    compute: Sequence[Callable[[jax.Array], NewBases]],
    keep: Sequence[Callable[[jax.Array], NewBases]],
) -> list[NewBases]:
    """``compute(flags)`` of each group that has a flag set, ``keep(flags)`` of the others.

    In most steps no group has one, and a single scalar says so: a device that decides for each group would wait for
    the host, or stop its queue, as often as there are groups.
    """

    def each(flags: Sequence[jax.Array]) -> list[NewBases]:
        return [jax.lax.cond(jnp.any(do), *how, do) for do, *how in zip(flags, compute, keep, strict=True)]

    def none(flags: Sequence[jax.Array]) -> list[NewBases]:
        return [how(do) for do, how in zip(flags, keep, strict=True)]

    if len(flags) < 2:
        return each(flags)
    return jax.lax.cond(jnp.any(jnp.stack([jnp.any(do) for do in flags])), each, none, list(flags))


def _everything(request: Request, refresh: Refresh, do: jax.Array) -> NewBases:
    return compute_bases(request.old, request.gradients, do, request.projector, request.masks, refresh)


def _nothing(bases: Bases, do: jax.Array) -> NewBases:
    return (*bases, jnp.zeros_like(do))


def room(masks: Masks, shape: tuple[int, ...]) -> jax.Array:
    """``[1 + T, k]`` bool: branches with room for any column; the others have nothing to wait for."""
    shared, task = (
        jnp.ones(shape[1:], bool) if mask is None else jnp.any(jnp.asarray(mask), axis=-1) for mask in masks
    )
    return jnp.concatenate([shared[None], jnp.broadcast_to(task, (shape[0] - 1, *shape[1:]))])


def _refresh_a_few(requests: Sequence[Request], now: Sequence[Refreshed], refresh: Refresh) -> list[Refreshed]:
    """The members of each stack whose turn it is, by dynamic slice."""
    asked = [
        members_due(request.turns, refresh) & room(request.masks, request.pending.shape) & ~one.done & ~one.failed
        for request, one in zip(requests, now, strict=True)
    ]
    new_bases = _where_any(
        [ask & request.usable for ask, request in zip(asked, requests, strict=True)],
        [
            functools.partial(_few, request._replace(old=one.bases), refresh)
            for request, one in zip(requests, now, strict=True)
        ],
        [functools.partial(_nothing, one.bases) for one in now],
    )
    return [
        Refreshed(
            (shared, task),
            (one.pending | ask) & ~request.usable,
            one.done | replaced,
            one.failed | (ask & request.usable & ~replaced),
        )
        for (shared, task, replaced), one, ask, request in zip(new_bases, now, asked, requests, strict=True)
    ]


def _few(request: Request, refresh: Refresh, do: jax.Array) -> NewBases:
    """New bases of the branches in ``do`` of members of a stack whose turn it is, which follow each other."""
    size, chunk = len(request.turns), max(map(request.turns.count, request.turns))
    start = jnp.minimum(jnp.argmax(members_due(request.turns, refresh)), size - chunk)

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
        request.projector._replace(factor=maybe_cut(request.projector.factor, 0)),
        (maybe_cut(masks[0], 0), maybe_cut(masks[1], 0)),
        refresh,
    )
    pasted = None if old[1] is None or task is None else paste(old[1], task, 1)
    return paste(old[0], shared, 0), pasted, paste(jnp.zeros_like(do), done, 1)
