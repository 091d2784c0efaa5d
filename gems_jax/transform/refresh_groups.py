"""Which groups of kernels get new bases in a step: one decision for all of them."""

import functools
import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from gems_jax.transform.refresh import (
    Bases,
    NewBases,
    Refresh,
    Refreshed,
    Request,
    members_due,
    room,
)
from gems_jax.transform.refresh_batches import batches_of, compute_batch, new_bases, split


def refresh_groups(requests: Sequence[Request], refresh: Refresh) -> list[Refreshed]:
    """Replaces the bases that are due or waiting, of all groups; one scalar decides whether anything is computed.

    Args:
      requests: one a group.
      refresh: when and how.
    """
    wanted = [(request.pending | refresh.due) & room(request.masks, request.pending.shape) for request in requests]
    asked = [want & request.usable for want, request in zip(wanted, requests, strict=True)]
    batches = batches_of(requests)
    computed = _where_any(
        [jnp.concatenate([asked[i] for i in batch], axis=1) for batch in batches],
        [functools.partial(compute_batch, [requests[i] for i in batch], refresh) for batch in batches],
        [functools.partial(_nothing, [requests[i].old for i in batch]) for batch in batches],
    )
    by_request = dict(zip(itertools.chain(*batches), itertools.chain(*computed), strict=True))
    new_bases = [by_request[i] for i in range(len(requests))]
    refreshed = [
        Refreshed((shared, task), want & ~request.usable, done, want & request.usable & ~done)
        for (shared, task, done), want, request in zip(new_bases, wanted, requests, strict=True)
    ]
    return refreshed if refresh.stagger_every is None else _refresh_a_few(requests, refreshed, refresh)


def _where_any(
    flags: Sequence[jax.Array],
    compute: Sequence[Callable[[jax.Array], list[NewBases]]],
    keep: Sequence[Callable[[jax.Array], list[NewBases]]],
) -> list[list[NewBases]]:
    """``compute(flags)`` of each group that has a flag set, ``keep(flags)`` of the others.

    In most steps no group has one, and a single scalar says so: a device that decides for each group would wait for
    the host, or stop its queue, as often as there are groups.
    """

    def each(flags: Sequence[jax.Array]) -> list[list[NewBases]]:
        return [jax.lax.cond(jnp.any(do), *how, do) for do, *how in zip(flags, compute, keep, strict=True)]

    def none(flags: Sequence[jax.Array]) -> list[list[NewBases]]:
        return [how(do) for do, how in zip(flags, keep, strict=True)]

    if len(flags) < 2:
        return each(flags)
    return jax.lax.cond(jnp.any(jnp.stack([jnp.any(do) for do in flags])), each, none, list(flags))


def _nothing(bases: Sequence[Bases], do: jax.Array) -> list[NewBases]:
    nowhere = split(jnp.zeros_like(do), [shared.shape[0] for shared, _ in bases], 1)
    return [(shared, task, none) for (shared, task), none in zip(bases, nowhere, strict=True)]


def _refresh_a_few(requests: Sequence[Request], now: Sequence[Refreshed], refresh: Refresh) -> list[Refreshed]:
    """The members of each stack whose turn it is, by dynamic slice."""
    asked = [
        members_due(request.turns, refresh) & room(request.masks, request.pending.shape) & ~one.done & ~one.failed
        for request, one in zip(requests, now, strict=True)
    ]
    computed = _where_any(
        [ask & request.usable for ask, request in zip(asked, requests, strict=True)],
        [
            functools.partial(_few, request._replace(old=one.bases), refresh)
            for request, one in zip(requests, now, strict=True)
        ],
        [functools.partial(_nothing, [one.bases]) for one in now],
    )
    return [
        Refreshed(
            (shared, task),
            (one.pending | ask) & ~request.usable,
            one.done | replaced,
            one.failed | (ask & request.usable & ~replaced),
        )
        for (shared, task, replaced), one, ask, request in zip(
            itertools.chain(*computed), now, asked, requests, strict=True
        )
    ]


def _few(request: Request, refresh: Refresh, do: jax.Array) -> list[NewBases]:
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
    shared, task, done = new_bases(
        (cut(old[0], 0), maybe_cut(old[1], 1)),
        (cut(gradients[0], 0), maybe_cut(gradients[1], 1)),
        cut(request.ids, 0),
        cut(do, 1),
        request.projector._replace(factor=maybe_cut(request.projector.factor, 0)),
        (maybe_cut(masks[0], 0), maybe_cut(masks[1], 0)),
        refresh,
    )
    pasted = None if old[1] is None or task is None else paste(old[1], task, 1)
    return [(paste(old[0], shared, 0), pasted, paste(jnp.zeros_like(do), done, 1))]
