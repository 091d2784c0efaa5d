"""New bases by block power iteration, its products with the gradient being passes of the model (METHOD.md 11)."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gems_jax.linalg.orthonormal import orthonormal_columns, orthonormal_inside
from gems_jax.linalg.projection import Projector
from gems_jax.linalg.sizes import Size, squares
from gems_jax.linalg.stacks import map_stack, mesh_of_devices, whole_columns
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


def bases_of(
    number: jax.Array,
    groups: Sequence[Branches],
    bases: list[Bases],
    done: list[jax.Array],
    lows: Callable[[], Lows],
    across: Callable[[list[Bases]], Lows],
    refresh: Refresh,
) -> list[Bases]:
    """The bases of a pass: ``U <- N G (G^T U)`` of the former pass' ``G^T U``, by one pass more.

    Args:
      number: of the pass.
      groups: the branches of all groups.
      bases, done: of the former pass, and which of them replace those in force.
      lows: gives their products with the gradients, of the shared basis with the merged one.
      across: ``V: [.., q, r]`` of all groups -> ``(G V)^T``, merged likewise, by a pass of the model.
      refresh: key and signs.
    """

    is_sweep = (number > BLOCKS) & (number <= LAST)

    def scaled_lows() -> list[Bases]:
        return [(_scaled(shared).mT, None if task is None else _scaled(task).mT) for shared, task in lows()]

    # One conditional after the other: what goes into one is in memory until its end.
    blocks = _only_if(is_sweep, scaled_lows)
    seen = _only_if(is_sweep, lambda: across(blocks))
    made = [
        lambda: [group.bases for group in groups],
        lambda: _starts(groups, refresh),
        lambda: _next(groups, seen, refresh),
        lambda: [_chosen(d, new, group.bases) for d, new, group in zip(done, bases, groups, strict=True)],
    ]
    return jax.lax.switch(jnp.where(number > BLOCKS, jnp.where(is_sweep, 2, 3), number), made)


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
    """The bases in force; orthonormal ones inside the null spaces of ``G V`` for the branches asked for."""
    made: dict[int, Bases] = {}
    normals = _normals(groups, refresh)
    # Thin blocks alone: all of one form together, however many.
    for batch in together([form_of(group.bases, group.projector) for group in groups]):
        some = [groups[i] for i in batch]
        counts = [group.bases[0].shape[0] for group in some]
        factor = jax.tree.map(join, *(group.projector.factor for group in some))
        projector = some[0].projector._replace(factor=factor)
        old = jax.tree.map(join, *(group.bases for group in some))
        blocks = jax.tree.map(join, *(across[i] for i in batch))
        blocks = jax.tree.map(lambda x: x.mT, blocks)
        masks = [join_masks([group.masks[n] for group in some], counts, old[n]) for n in range(2)]
        asked = jnp.concatenate([group.asked for group in some], axis=1)
        draw = normals[old[0].dtype]
        shared = _orthonormal(1, (blocks[0], old[0], asked[0]), projector, masks[0], None, draw, refresh)
        exclude = shared if refresh.settings.complementary else None
        tasks: list[Any] = [None] * len(some)
        if old[1] is not None:
            task = _orthonormal(2, (blocks[1], old[1], asked[1:]), projector, masks[1], exclude, draw, refresh)
            tasks = split(task, counts, 1)
        made |= dict(zip(batch, zip(split(shared, counts), tasks, strict=True), strict=True))
    return [made[i] for i in range(len(groups))]


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
