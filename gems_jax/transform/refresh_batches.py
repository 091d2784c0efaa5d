"""Groups of small kernels of one form, which are refreshed as one stack: less to compile than each by itself."""

import math
from collections.abc import Hashable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from gems_jax.linalg.projection import Projector
from gems_jax.linalg.stacks import mesh_of_devices
from gems_jax.transform.random_bases import draw_bases
from gems_jax.transform.refresh import Bases, Gradients, Masks, NewBases, Refresh, Request, compute_bases
from gems_jax.types import PyTree

# Of the gradients of a batch, which are copied to lie in one array while they are decomposed.
MOST_BYTES = 32 * 2**20


def batches_of(requests: Sequence[Request]) -> list[list[int]]:
    """Which requests are computed together: those of one form, up to `MOST_BYTES` of gradients.

    Args:
      requests: one a group of kernels.

    Returns:
      Their positions, each in one batch.
    """
    forms = [(form_of((r.old, r.gradients), r.projector), len(r.pending)) for r in requests]
    sizes = [sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(r.gradients)) for r in requests]
    return together(forms, sizes)


def together(forms: Sequence[Hashable], sizes: Sequence[int] | None = None) -> list[list[int]]:
    """Positions of what has one form, in batches of up to `MOST_BYTES`; ``None``: of any size.

    On a mesh each stays alone: arrays lie there as their kernels do.
    """
    if mesh_of_devices() is not None:
        return [[i] for i in range(len(forms))]
    batches: list[list[int]] = []
    open_batches: dict[Hashable, tuple[list[int], int]] = {}
    for i, form in enumerate(forms):
        size = 0 if sizes is None else sizes[i]
        batch, before = open_batches.get(form, ([], 0))
        if not batch or before + size > MOST_BYTES:
            batch, before = [], 0
            batches.append(batch)
        batch.append(i)
        open_batches[form] = batch, before + size
    return batches


def form_of(arrays: PyTree, projector: Projector) -> Hashable:
    """What groups in a batch have in common: all but how many kernels and protected directions they have."""
    leaves, treedef = jax.tree.flatten(arrays)
    shapes = tuple((x.shape[:-3], x.shape[-2:], x.dtype) for x in leaves)
    # A factor without columns is a case of its own, see `Projector.project`.
    has_columns = None if projector.factor is None else projector.factor.shape[-1] > 0
    return treedef, shapes, projector.complement, has_columns


def compute_batch(requests: Sequence[Request], refresh: Refresh, do: jax.Array) -> list[NewBases]:
    """New bases of the groups of a batch, computed as those of one stack of all their kernels.

    Args:
      requests: of one form.
      refresh: see `Refresh`.
      do: ``[1 + T, sum(k)]`` bool, the branches to compute.

    Returns:
      Each group's new bases, those not in ``do`` as they were, and which were replaced.
    """
    if len(requests) == 1:
        (r,) = requests
        return [new_bases(r.old, r.gradients, r.ids, do, r.projector, r.masks, refresh)]
    counts = [r.old[0].shape[0] for r in requests]
    old, gradients, factor = jax.tree.map(join, *((r.old, r.gradients, r.projector.factor) for r in requests))
    masks = (
        join_masks([r.masks[0] for r in requests], counts, old[0]),
        join_masks([r.masks[1] for r in requests], counts, old[1]),
    )
    projector = requests[0].projector._replace(factor=factor)
    ids = jnp.concatenate([r.ids for r in requests])
    shared, task, done = new_bases(old, gradients, ids, do, projector, masks, refresh)
    tasks = [None] * len(counts) if task is None else split(task, counts, 1)
    return list(zip(split(shared, counts), tasks, split(done, counts, 1), strict=True))


def new_bases(
    old: Bases,
    gradients: Gradients,
    ids: jax.Array,
    do: jax.Array,
    projector: Projector,
    masks: Masks,
    refresh: Refresh,
) -> NewBases:
    """`compute_bases` of the gradients, or `draw_bases` by the ids."""
    if refresh.method == "random":
        return draw_bases(old, ids, do, projector, masks, refresh)
    return compute_bases(old, gradients, do, projector, masks, refresh)


def split(x: jax.Array, counts: Sequence[int], axis: int = 0) -> list[jax.Array]:
    """The groups' own arrays, from one of all their kernels."""
    return jnp.split(x, np.cumsum(counts)[:-1], axis)


def join(*arrays: jax.Array) -> jax.Array:
    """``[..., k, p, c]`` of all kernels; factors with fewer columns get columns of zeros."""
    widest = max(x.shape[-1] for x in arrays)
    missing = [((0, 0),) * (x.ndim - 1) + ((0, widest - x.shape[-1]),) for x in arrays]
    wide = [jnp.pad(x, width) if width[-1][1] else x for x, width in zip(arrays, missing, strict=True)]
    return jnp.concatenate(wide, axis=-3)


def join_masks(masks: Sequence[jax.Array | None], counts: Sequence[int], bases: jax.Array | None) -> jax.Array | None:
    """Masks of columns, all true where a group has none."""
    if bases is None or all(mask is None for mask in masks):
        return None
    rank = bases.shape[-1]
    wide = [jnp.broadcast_to(True if m is None else m, (k, rank)) for m, k in zip(masks, counts, strict=True)]
    return jnp.concatenate(wide)
