"""Items that share all codes are separated: other last codes, at the least cost."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from gems_jax.identifiers.checks import check_codes, checked_embeddings
from gems_jax.identifiers.measures import in_collisions, level_errors
from gems_jax.identifiers.prefixes import nearest_prefixes

# Items of a prefix that is full which are spread over its neighbours together: an assignment takes the cube of it.
_TOGETHER = 1024


class Reassigned(NamedTuple):
    """Codes that no two items share.

    Attributes:
      codes: int32 ``[N, L]``.
      moved: number of items with another code than before.
      spilled: those of them that have another prefix, too: theirs had more items than codes.
      before, after: mean squared distance of the items' vectors from the sums of their codes.
    """

    codes: np.ndarray
    moved: int
    spilled: int
    before: float
    after: float


def check_enough(items: int, levels: int, codebook_size: int, section: str) -> None:
    """Refuses more items than identifiers, before work is done for them.

    Args:
      items: their number.
      levels, codebook_size: of the identifiers, as the fields of these names say.
      section: of the configuration that the fields are in.
    """
    if items > codebook_size**levels:
        raise ValueError(
            f"{items:,} items need as many identifiers: {section}.levels {levels} and {section}.codebook_size "
            f"{codebook_size} make {codebook_size**levels:,}; raise either"
        )


def reassign(codes: np.ndarray, embeddings: np.ndarray, codebooks: np.ndarray) -> Reassigned:
    """Gives items that share all codes other last codes.

    Among the items of a prefix, the codes of all levels but the last, in which two items collide, ``min sum_i |x_i -
    sum_l C_l[c_il]|^2`` over all ways to give each a last code of its own: a linear assignment. A prefix with more
    items than there are codes takes those that are free under the prefixes nearest to its items' mean into the
    assignment, until there are enough.

    Args:
      codes: int ``[N, L]``.
      embeddings: float ``[N, d]`` of the items; of an RQ-VAE its `Identifiers.vectors`.
      codebooks: float ``[L, K, d]``.

    Returns:
      `Reassigned`. Items of other prefixes keep their codes.

    Raises:
      ValueError: shapes do not go together, or there are more items than ``K^L``.

    Example:
      >>> books = np.array([[[0.0], [8.0]], [[-1.0], [1.0]]], np.float32)
      >>> moved = reassign(np.array([[1, 1], [1, 1]]), np.array([[8.9], [8.2]]), books)
      >>> moved.codes.tolist(), moved.moved
      ([[1, 1], [1, 0]], 1)
    """
    rows, books, before = checked_embeddings(embeddings), np.asarray(codebooks), np.asarray(codes)
    check_codes(before, rows, books)
    levels, size, _ = books.shape
    if len(rows) > size**levels:
        raise ValueError(
            f"{len(rows):,} items need as many identifiers, and {levels} levels of {size} codes make {size**levels:,}: "
            "take more levels or larger codebooks"
        )
    after = before.astype(np.int32)
    full = []
    for members in colliding_groups(after):
        if len(members) > size:
            full.append(members)
            continue
        costs = costs_under(rows[members], after[members[0], None, :-1], books)
        after[members, -1] = linear_sum_assignment(costs)[1]
    _spill(after, full, rows, books)
    changed = after != before
    if in_collisions(after):
        raise AssertionError("two items still share all codes")
    return Reassigned(
        after,
        moved=int(changed.any(1).sum()),
        spilled=int(changed[:, :-1].any(1).sum()),
        before=level_errors(before, rows, books)[-1],
        after=level_errors(after, rows, books)[-1],
    )


def colliding_groups(codes: np.ndarray) -> Iterator[np.ndarray]:
    """The rows of each prefix in which two rows are equal, in the order of the prefixes.

    Args:
      codes: int ``[N, L]``.

    Example:
      >>> [group.tolist() for group in colliding_groups(np.array([[0, 1], [1, 2], [0, 1], [0, 3], [1, 1]]))]
      [[0, 2, 3]]
    """
    order = np.lexsort(codes.T[::-1])
    ordered = codes[order]
    differs = (ordered[1:] != ordered[:-1]).cumsum(1) > 0  # at or before each level
    begins = np.flatnonzero(np.r_[True, differs[:, -2]]) if codes.shape[1] > 1 else np.zeros(1, np.int64)
    collides = np.r_[False, ~differs[:, -1]]
    ends = np.r_[begins[1:], len(codes)]
    for group in np.flatnonzero(np.logical_or.reduceat(collides, begins)):
        yield np.sort(order[begins[group] : ends[group]])


def costs_under(rows: np.ndarray, prefixes: np.ndarray, books: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """Squared distances of rows ``[n, d]`` from all codes under prefixes ``[P, L - 1]``, float64 ``[n, P * K]``.

    Codebooks may have different sizes; ``K`` is that of the last.
    """
    last = books[-1].astype(np.float64)
    blocks = []
    for prefix in prefixes:
        left = rows.astype(np.float64)
        for book, code in zip(books, prefix, strict=False):
            left -= book[code]
        squares = np.square(left).sum(1)[:, None] + np.square(last).sum(1)
        blocks.append(squares - 2 * left @ last.T)
    return np.concatenate(blocks, axis=1)


def _spill(codes: np.ndarray, full: list[np.ndarray], rows: np.ndarray, books: np.ndarray) -> None:
    """Gives the items of prefixes that are too full codes of their own, in place, these prefixes one after the other.

    Codes under prefixes whose turn is to come are left to their own items, which need them all.
    """
    if not full:
        return
    size = books.shape[1]
    settled = np.ones(len(codes), bool)
    settled[np.concatenate(full)] = False
    taken: dict[tuple[int, ...], set[int]] = {}
    for *prefix, last in codes[settled].tolist():
        taken.setdefault(tuple(prefix), set()).add(last)
    waiting = {tuple(codes[members[0], :-1].tolist()) for members in full}
    for members in full:
        waiting.discard(tuple(codes[members[0], :-1].tolist()))
        for start in range(0, len(members), _TOGETHER):
            part = members[start : start + _TOGETHER]
            prefixes, free = free_near(rows[part], len(part), codes[part[0], :-1], books, taken, waiting)
            costs = np.where(free.ravel(), costs_under(rows[part], prefixes, books), np.inf)
            columns = np.flatnonzero(free.ravel())
            chosen = columns[linear_sum_assignment(costs[:, columns])[1]]
            codes[part, :-1], codes[part, -1] = prefixes[chosen // size], chosen % size
            for *prefix, last in codes[part].tolist():
                taken.setdefault(tuple(prefix), set()).add(last)


def free_near(
    rows: np.ndarray,
    needed: int,
    own: np.ndarray,
    books: Sequence[np.ndarray] | np.ndarray,
    taken: Mapping[tuple[int, ...], set[int]],
    waiting: Collection[tuple[int, ...]] = (),
) -> tuple[np.ndarray, np.ndarray]:
    """Prefixes ``[P, L - 1]`` nearest to the mean of rows, their own first, and which of their codes are free.

    There are at least ``needed`` free ones, bool ``[P, K]``: so many must be there.
    """
    size, count = len(books[-1]), 8
    mean = rows.mean(0, dtype=np.float64)
    while True:
        found = nearest_prefixes(mean, books[:-1], count)
        found = np.concatenate([own[None], found[(found != own).any(1)]])
        free = np.ones((len(found), size), bool)
        for row, prefix in zip(free, map(tuple, found.tolist()), strict=True):
            row[list(range(size)) if prefix in waiting else sorted(taken.get(prefix, ()))] = False
        enough = free.sum(1).cumsum() >= needed
        if enough.any():
            last = int(np.argmax(enough)) + 1
            return found[:last], free[:last]
        count *= 4
