"""New bases by block power iteration, its products with the gradient being passes of the model (METHOD.md 11)."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gems_jax.linalg.orthonormal import orthonormal_columns, orthonormal_inside
from gems_jax.linalg.projection import Projector
from gems_jax.linalg.sizes import Size, squares
from gems_jax.linalg.stacks import exchanged, map_stack, mesh_of_devices, whole_columns
from gems_jax.linalg.subspace import (
    WARM_SWEEPS,
    align,
    canonical_signs,
    generic_columns,
    is_finite,
    project_inside,
    room_for,
    rounding,
    scaled,
)
from gems_jax.projected.packed_bases import PackedBases, packed, where_they_lie
from gems_jax.transform.refresh import Bases, Masks, Refresh, has_basis, where_leading
from gems_jax.transform.refresh_batches import form_of, join, join_masks, split, together

# Sweeps from a random block: each takes two passes of the model. Of a T5's gradients (8 x 64 tokens of two tasks, rank
# an eighth) two capture .998 of the energy that a decomposition does, three .999.
COLD_SWEEPS = 3


class Branches(NamedTuple):
    """The branches of a group of kernels in a refresh.

    Attributes:
      bases: in force, shared ``[k, p, r]`` and task ``[T, k, p, r_t]`` or ``None``.
      asked: ``[1 + T, k]`` bool, those to be replaced.
      projector: factor ``[k, p, c]``, or none.
      masks: of the columns there is room for.
      sizes: of the gradients, shared ``[k]`` and task ``[T, k]``.
    """

    bases: Bases
    asked: jax.Array
    projector: Projector
    masks: Masks
    sizes: tuple[Size, Size | None]


# ``U^T G``: shared ``[k, r, q]`` of the merged gradient, task ``[T, k, r_t, q]``, of every group.
Lows = list[tuple[jax.Array, jax.Array | None]]


# The passes of a step by number: with the bases in force; then, where some are asked for, with random blocks, behind
# each sweep, and with bases that stay.
FIRST, BLOCKS, LAST = 0, 1, 1 + COLD_SWEEPS
STAYED, END = LAST + 1, LAST + 2


def sweep(number: jax.Array, lows: Callable[[], Lows], across: Callable[[list[Bases]], Lows]) -> Lows:
    """``(G V)^T`` of the former pass' ``V^T = U^T G`` where pass ``number`` is one of a sweep; by a pass of the model.

    Args:
      number: of the pass.
      lows: gives the former pass' products with the gradients, of the shared basis with the merged one.
      across: ``V: [.., q, r]`` of all groups -> ``(G V)^T``, merged likewise.
    """

    def blocks() -> list[Bases]:
        return [(_scaled(shared).mT, None if task is None else exchanged(_scaled(task).mT)) for shared, task in lows()]

    # One conditional after the other: what goes into one is in memory until its end. All numbers of a block in a row,
    # else the compiler leaves it as it was before it was transposed, and makes a copy beside it for the model.
    rows = _only_if(_is_sweep(number), lambda: jax.tree.map(jnp.ravel, blocks()))
    ordered = jax.tree.map(lambda row, block: row.reshape(block.shape), rows, jax.eval_shape(blocks))
    return _only_if(_is_sweep(number), lambda: across([(shared, exchanged(task)) for shared, task in ordered]))


def bases_of(
    number: jax.Array,
    groups: Sequence[Branches],
    former: list[PackedBases],
    done: list[jax.Array],
    seen: Lows,
    sketches: list[jax.Array],
    refresh: Refresh,
) -> list[PackedBases]:
    """The bases of a pass: ``U <- N G (G^T U)`` in a sweep, random blocks ahead of one; those in force at first.

    Args:
      number: of the pass.
      groups: the branches of all groups.
      former, done: the former pass' bases, and which of them replace those in force.
      seen: what `sweep` gives.
      sketches: packed with the bases.
      refresh: key and signs.
    """

    def all_packed(some: Sequence[int], bases: Sequence[Bases]) -> list[PackedBases]:
        return [packed(these, sketches[i]) for i, these in zip(some, bases, strict=True)]

    def starts(_: list[PackedBases]) -> list[PackedBases]:
        return all_packed(every, _starts(groups, refresh))

    def chosen(former: list[PackedBases]) -> list[PackedBases]:
        each = zip(done, former, groups, strict=True)
        return all_packed(every, [_chosen(d, new.bases, group.bases) for d, new, group in each])

    def orthonormal(some: Sequence[int]) -> Callable[[list[PackedBases]], list[PackedBases]]:
        these, blocks = [groups[i] for i in some], [seen[i] for i in some]
        return lambda _: all_packed(some, _next(these, blocks, refresh))

    def renewed(former: list[PackedBases]) -> list[PackedBases]:
        bases = where_they_lie(number == BLOCKS, starts, former)
        # Thin blocks alone: all of one form together, however many; one form after the other.
        for some in together([form_of(group.bases, group.projector) for group in groups]):
            new = where_they_lie(_is_sweep(number), orthonormal(some), [bases[i] for i in some])
            for i, of_group in zip(some, new, strict=True):
                bases[i] = of_group
        return where_they_lie(number == STAYED, chosen, bases)

    every = range(len(groups))
    # In most steps nothing is due, and one question says so: some devices wait for the host at each.
    return where_they_lie(number > FIRST, renewed, former)


def _is_sweep(number: jax.Array) -> jax.Array:
    return (number > BLOCKS) & (number <= LAST)


def _only_if(condition: jax.Array, compute: Callable[[], Any]) -> Any:
    """What is computed, or zeros."""
    compute = jax.jit(compute)  # traced once
    shapes = jax.eval_shape(compute)
    return jax.lax.cond(condition, compute, lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes))


def next_pass(
    number: jax.Array, groups: Sequence[Branches], bases: list[Bases], lows: Lows, done: list[jax.Array]
) -> tuple[jax.Array, list[jax.Array]]:
    """The number of the next pass, `END` for none, and which of the bases asked for are replaced ``[1 + T, k]``.

    From bases in force one sweep makes new ones, from random blocks several do. Where nothing but rounding of a
    gradient is left in its null space the basis stays; products with it take a pass more, so that those of all kernels
    need not be kept for it.
    """
    asked = jnp.any(jnp.stack([jnp.any(group.asked) for group in groups]))
    warm = jnp.all(jnp.stack([jnp.all(_has_bases(group) | ~group.asked) for group in groups]))
    begin = jnp.where(asked, jnp.where(warm, LAST - WARM_SWEEPS + 1, BLOCKS), END)
    seen = [_remain(group, new, low) for group, new, low in zip(groups, bases, lows, strict=True)]
    done = [jnp.where(number == LAST, now, former) for now, former in zip(seen, done, strict=True)]
    all_done = jnp.all(jnp.stack([jnp.all(d | ~group.asked) for d, group in zip(done, groups, strict=True)]))
    after = jnp.where((number == LAST) & all_done, END, number + 1)
    return jnp.where(number == FIRST, begin, after), done


def _has_bases(group: Branches) -> jax.Array:
    """``[1 + T, k]`` bool."""
    shared, task = group.bases
    return jnp.concatenate([has_basis(shared)[None], *([] if task is None else [has_basis(task)])])


def _chosen(where: jax.Array, new: Bases, old: Bases) -> Bases:
    task = None if old[1] is None else where_leading(where[1:], new[1], old[1])
    return where_leading(where[0], new[0], old[0]), task


def _normals(groups: Sequence[Branches], refresh: Refresh) -> dict[Any, jax.Array]:
    """Numbers for the `generic_columns` of any basis, by its dtype: each draw is a program of its own."""
    sizes: dict[Any, int] = {}
    for basis in jax.tree.leaves([group.bases for group in groups]):
        sizes[basis.dtype] = max(sizes.get(basis.dtype, 0), math.prod(basis.shape[-2:]))
    return {dtype: jax.random.normal(refresh.key, (size,), dtype) for dtype, size in sizes.items()}


def _starts(groups: Sequence[Branches], refresh: Refresh) -> list[Bases]:
    """The bases in force; random columns of length 1 in the null space for those asked for that have none."""
    normals = _normals(groups, refresh)

    def start(group: Branches, number: int, has: jax.Array, asked: jax.Array) -> jax.Array:
        basis = group.bases[number]
        assert basis is not None
        room = room_for(group.masks[number], basis.shape[-1], basis.dtype)
        fill = generic_columns(group.projector, basis.shape[-2], room, normals[basis.dtype])
        fill = project_inside(jnp.broadcast_to(fill, basis.shape), group.projector.project_once, None)
        lengths = jnp.linalg.norm(fill, axis=-2, keepdims=True)
        return where_leading(asked & ~has, fill / jnp.where(lengths > 0, lengths, 1), basis)

    def of_group(group: Branches) -> Bases:
        warm, asked = _has_bases(group), group.asked
        task = None if group.bases[1] is None else start(group, 1, warm[1:], asked[1:])
        return start(group, 0, warm[0], asked[0]), task

    return [of_group(group) for group in groups]


def _scaled(block: jax.Array) -> jax.Array:
    """With a largest entry of 1; zeros where it is not finite."""
    finite = is_finite(block)
    block, is_normal = scaled(block)
    return jnp.where(finite & is_normal, block, 0)


def _next(groups: Sequence[Branches], across: Lows, refresh: Refresh) -> list[Bases]:
    """The bases in force; orthonormal ones inside the null spaces of ``G V`` for the branches asked for.

    All groups are of one form, see `gems_jax.transform.refresh_batches`.
    """
    counts = [group.bases[0].shape[0] for group in groups]
    factor = jax.tree.map(join, *(group.projector.factor for group in groups))
    projector = groups[0].projector._replace(factor=factor)
    old = jax.tree.map(join, *(group.bases for group in groups))
    blocks = jax.tree.map(lambda x: x.mT, jax.tree.map(join, *across))
    masks = [join_masks([group.masks[n] for group in groups], counts, old[n]) for n in range(2)]
    asked = jnp.concatenate([group.asked for group in groups], axis=1)
    draw = _normals(groups, refresh)[old[0].dtype]
    shared = _orthonormal(1, (blocks[0], old[0], asked[0]), projector, masks[0], None, draw, refresh)
    tasks: list[Any] = [None] * len(groups)
    if old[1] is not None:
        exclude = shared if refresh.settings.complementary else None
        task = _orthonormal(2, (blocks[1], old[1], asked[1:]), projector, masks[1], exclude, draw, refresh)
        tasks = split(task, counts, 1)
    return list(zip(split(shared, counts), tasks, strict=True))


def _orthonormal(
    depth: int,
    varying: tuple[jax.Array, jax.Array, jax.Array],
    projector: Projector,
    mask: jax.Array | None,
    exclude: jax.Array | None,
    normals: jax.Array,
    refresh: Refresh,
) -> jax.Array:
    """Of stacks of blocks, of the bases in force, and of whether these are to be replaced, ``depth`` axes ahead."""

    def one(varying: Any, shared: Any) -> jax.Array:
        block, previous, asked = varying
        factor, exclude, columns = shared
        here = Projector(factor, projector.complement)
        room = room_for(columns, block.shape[-1], block.dtype)
        fill = generic_columns(here, block.shape[-2], room, normals)

        def project(x: jax.Array) -> jax.Array:
            return project_inside(x, here.project_once, exclude)

        fill = project(jnp.broadcast_to(fill, block.shape))
        block, _ = orthonormal_columns(whole_columns(project(_scaled(block))))
        basis = canonical_signs(orthonormal_inside(block, project, fill))
        if refresh.settings.signs == "align":
            warm = has_basis(previous)[..., None, None]
            basis = jnp.where(warm, align(basis, previous), basis)
        return where_leading(asked, basis, previous)

    shared = (projector.factor, exclude, mask)
    return one(varying, shared) if mesh_of_devices() else map_stack(one, depth, varying, shared)


def _remain(group: Branches, bases: Bases, low: tuple[jax.Array, jax.Array | None]) -> jax.Array:
    """``[1 + T, k]`` bool: branches asked for whose basis is finite and sees more than rounding of the gradient."""

    def remains(basis: jax.Array, low: jax.Array, size: Size) -> jax.Array:
        there = jnp.max(jnp.abs(basis), axis=-2) > 0  # columns
        share = jnp.sum(there.astype(low.dtype), axis=-1) / basis.shape[-2]
        seen = squares(low * size.power[..., None, None].astype(low.dtype), 2)
        enough = seen > rounding(low.dtype) ** 2 * share * size.squares
        return enough & is_finite(basis)[..., 0, 0]

    shared = remains(bases[0], low[0], group.sizes[0])[None]
    if bases[1] is None or low[1] is None or group.sizes[1] is None:
        return group.asked & shared
    return group.asked & jnp.concatenate([shared, remains(bases[1], low[1], group.sizes[1])])
