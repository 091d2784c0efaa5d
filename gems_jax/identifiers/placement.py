"""Codes of items that come later: from the codebooks that there are, and none that another item has."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from gems_jax.identifiers.checks import check_codes, check_width, checked_embeddings
from gems_jax.identifiers.kmeans import chunks_of, nearest
from gems_jax.identifiers.reassignment import costs_under, free_near

# Items of a prefix without enough free codes that are spread over its neighbours together.
_TOGETHER = 1024


class Placed(NamedTuple):
    """Codes of new items that no two items share, old ones included.

    Attributes:
      codes: int32 ``[n, L]``.
      moved: number of items whose codes are not those nearest to them.
      spilled: those of them that have another prefix, too.
    """

    codes: np.ndarray
    moved: int
    spilled: int


def place(embeddings: np.ndarray, codebooks: np.ndarray, taken: np.ndarray, wanted: np.ndarray | None = None) -> Placed:
    """Gives new items codes beside items that keep theirs.

    Level by level an item gets the nearest code of those that some old item has there: a model has tokens for no other.
    Under a prefix (all codes but the last) in which a new item would share all codes with another, new items get the
    free last codes with the smallest sum of squared distances; where too few are free, those of the nearest prefixes.

    Args:
      embeddings: float ``[n, d]`` of the new items; of an RQ-VAE its `Identifiers.vectors`.
      codebooks: float ``[L, K, d]``.
      taken: int ``[N, L]``, codes of the old items, no two alike.
      wanted: int ``[n, L]``, codes to begin with instead of the nearest, each one that an old item has at its level.

    Returns:
      `Placed`.

    Raises:
      ValueError: shapes do not go together, there are more items than identifiers of these codes, or a code is wanted
        that no old item has at its level.

    Example:
      >>> books = np.array([[[0.0], [8.0]], [[-1.0], [1.0]]], np.float32)
      >>> place(np.array([[9.2], [8.7]]), books, taken=np.array([[1, 0], [0, 1]])).codes.tolist()
      [[1, 1], [0, 0]]
    """
    rows, old = checked_embeddings(embeddings), np.asarray(taken)
    check_width(rows, codebooks)
    used = [np.unique(column) for column in old.T]
    books = [np.asarray(book)[codes] for book, codes in zip(codebooks, used, strict=True)]
    free = math.prod(map(len, used)) - len(old)
    if len(rows) > free:
        raise ValueError(
            f"{len(rows):,} new items need as many identifiers, and of those that the model has tokens for {free:,} "
            "are free: tune a model with more levels or larger codebooks"
        )
    taken_under: dict[tuple[int, ...], set[int]] = {}
    for *prefix, last in _numbered(old, used).tolist():
        taken_under.setdefault(tuple(prefix), set()).add(last)
    if wanted is None:
        first = _nearest_codes(rows, books)
    else:
        check_codes(np.asarray(wanted), rows, np.asarray(codebooks))
        for level, (names, column) in enumerate(zip(used, np.asarray(wanted).T, strict=True), 1):
            if not np.isin(column, names).all():
                raise ValueError(f"wanted, level {level}: no old item has code {np.setdiff1d(column, names)[0]} there")
        first = _numbered(np.asarray(wanted), used)
    codes = _apart(first, rows, books, taken_under)
    changed = codes != first
    return Placed(
        np.stack([names[column] for names, column in zip(used, codes.T, strict=True)], axis=1).astype(np.int32),
        moved=int(changed.any(1).sum()),
        spilled=int(changed[:, :-1].any(1).sum()),
    )


def _numbered(codes: np.ndarray, used: Sequence[np.ndarray]) -> np.ndarray:
    """Codes as places among those of their level that are used, int64 ``[N, L]``."""
    return np.stack([np.searchsorted(names, column) for names, column in zip(used, codes.T, strict=True)], axis=1)


def _nearest_codes(rows: np.ndarray, books: Sequence[np.ndarray]) -> np.ndarray:
    """Codes of rows ``[n, d]``, those of the nearest vectors level by level, int64 ``[n, L]``."""
    parts = []
    for chunk in chunks_of(rows):
        columns = []
        for book in books:
            columns.append(nearest(chunk, book)[0])
            chunk = chunk - book[columns[-1]]
        parts.append(np.stack(columns, axis=1).astype(np.int64))
    return np.concatenate(parts)


def _apart(
    first: np.ndarray, rows: np.ndarray, books: Sequence[np.ndarray], taken: dict[tuple[int, ...], set[int]]
) -> np.ndarray:
    """The codes, with others where items would share all of theirs; ``taken`` gets them."""
    codes, size = first.copy(), len(books[-1])
    members_of: dict[tuple[int, ...], list[int]] = {}
    for number, prefix in enumerate(map(tuple, codes[:, :-1].tolist())):
        members_of.setdefault(prefix, []).append(number)
    full = []
    for prefix, numbers in members_of.items():
        there, lasts = taken.setdefault(prefix, set()), codes[numbers, -1].tolist()
        if len(set(lasts)) < len(lasts) or not there.isdisjoint(lasts):
            if len(numbers) > size - len(there):
                full.append(np.asarray(numbers))
                continue
            left = np.setdiff1d(np.arange(size), sorted(there))
            costs = costs_under(rows[numbers], codes[numbers[0], None, :-1], books)
            codes[numbers, -1] = left[linear_sum_assignment(costs[:, left])[1]]
        there.update(codes[numbers, -1].tolist())
    for members in full:
        for start in range(0, len(members), _TOGETHER):
            part = members[start : start + _TOGETHER]
            prefixes, open_codes = free_near(rows[part], len(part), codes[part[0], :-1].copy(), books, taken)
            columns = np.flatnonzero(open_codes.ravel())
            costs = costs_under(rows[part], prefixes, books)[:, columns]
            chosen = columns[linear_sum_assignment(costs)[1]]
            codes[part, :-1], codes[part, -1] = prefixes[chosen // size], chosen % size
            for *prefix, last in codes[part].tolist():
                taken.setdefault(tuple(prefix), set()).add(last)
    return codes
