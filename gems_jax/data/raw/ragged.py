"""Lists of different lengths as two flat arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

BLOCK_VALUES = 4_194_304


@dataclass(frozen=True)
class Ragged:
    """Row ``r`` is ``values[offsets[r]:offsets[r + 1]]``.

    Args:
      values: all rows one after the other.
      offsets: int64 ``[R + 1]``, beginning with 0.

    Example:
      >>> lists = Ragged.of([[3, 4], [], [5]])
      >>> lists.lengths.tolist(), lists.row_of.tolist(), lists[2].tolist()
      ([2, 0, 1], [0, 0, 2], [5])
    """

    values: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]], dtype: type = np.int32) -> Ragged:
        """From Python lists."""
        return cls.from_lengths(
            np.asarray([value for row in rows for value in row], dtype), np.asarray([len(row) for row in rows])
        )

    @classmethod
    def from_lengths(cls, values: np.ndarray, lengths: np.ndarray) -> Ragged:
        """From flat values and the length of every row."""
        offsets = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        return cls(values, offsets)

    @classmethod
    def empty(cls, rows: int) -> Ragged:
        """``rows`` empty lists."""
        return cls(np.zeros(0, np.int32), np.zeros(rows + 1, np.int64))

    @classmethod
    def join(cls, parts: Sequence[Ragged]) -> Ragged:
        """The rows of all parts, in order."""
        if not parts:
            return cls.empty(0)
        lengths = np.concatenate([part.lengths for part in parts])
        return cls.from_lengths(np.concatenate([part.values for part in parts]), lengths)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """int64 ``[R]``."""
        return np.diff(self.offsets)

    @property
    def row_of(self) -> np.ndarray:
        """int64, the row each value stands in."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def rows(self, block: slice) -> Ragged:
        """Consecutive rows, without copying their values."""
        offsets = self.offsets[block.start : block.stop + 1]
        return Ragged(self.values[offsets[0] : offsets[-1]], offsets - offsets[0])

    def slices(self, starts: np.ndarray, lengths: np.ndarray) -> Ragged:
        """Rows of ``lengths`` values from position ``starts`` of the flat values; they may overlap."""
        offsets = Ragged.from_lengths(self.values[:0], lengths).offsets
        values = np.empty(offsets[-1], self.values.dtype)
        for rows in row_blocks(offsets):
            first, last = offsets[rows.start], offsets[rows.stop]
            shift = np.repeat(starts[rows] - offsets[rows.start : rows.stop], lengths[rows])
            values[first:last] = self.values[np.arange(first, last) + shift]
        return Ragged(values, offsets)

    def take(self, rows: np.ndarray) -> Ragged:
        """The given rows, in the given order (or where a mask is true)."""
        index = np.flatnonzero(rows) if rows.dtype == bool else rows
        return self.slices(self.offsets[:-1][index], self.lengths[index])

    def keep(self, mask: np.ndarray) -> Ragged:
        """The values where the mask is true; all rows stay."""
        lengths = np.bincount(self.row_of[mask], minlength=len(self))
        return Ragged.from_lengths(self.values[mask], lengths)

    def last(self, count: int) -> Ragged:
        """At most the last ``count`` values of every row."""
        lengths = np.minimum(self.lengths, count)
        return self.slices(self.offsets[1:] - lengths, lengths)

    def first(self, count: int) -> Ragged:
        """At most the first ``count`` values of every row."""
        return self.slices(self.offsets[:-1], np.minimum(self.lengths, count))

    def beside(self, other: Ragged) -> Ragged:
        """Every row's values, then those of the other's row."""
        row_of = np.concatenate([self.row_of, other.row_of])
        order = np.argsort(row_of, kind="stable")
        return Ragged.from_lengths(np.concatenate([self.values, other.values])[order], self.lengths + other.lengths)

    def distinct(self) -> Ragged:
        """Every row's values, each once, in order of appearance."""
        row_of, size = self.row_of, 1 + int(self.values.max(initial=0))
        first = np.unique(pair_keys(row_of, self.values, size), return_index=True)[1]
        keep = np.zeros(len(row_of), bool)
        keep[first] = True
        return self.keep(keep)

    def map(self, table: np.ndarray) -> Ragged:
        """Every value replaced by its entry in a table."""
        return Ragged(table[self.values], self.offsets)


def row_blocks(offsets: np.ndarray) -> Iterator[slice]:
    """Slices of rows that hold few values together: work on lists block by block needs little memory beside them.

    Args:
      offsets: of ragged lists, ``[R + 1]``.
    """
    count, start = len(offsets) - 1, 0
    while start < count:
        stop = int(np.searchsorted(offsets, offsets[start] + BLOCK_VALUES, side="right")) - 1
        stop = min(max(stop, start + 1), count)
        yield slice(start, stop)
        start = stop


def distinct_pairs(group: np.ndarray, lists: Ragged, size: int) -> np.ndarray:
    """Sorted keys (`pair_keys`) of each row's group and values, each once.

    Example:
      >>> distinct_pairs(np.array([1, 0, 1]), Ragged.of([[2, 2], [], [3]]), 10).tolist()
      [12, 13]
    """
    parts = [np.zeros(0, np.int64)]
    for rows in row_blocks(lists.offsets):
        block = lists.rows(rows)
        parts.append(np.unique(pair_keys(group[rows][block.row_of], block.values, size)))
    return np.unique(np.concatenate(parts))


def pair_keys(first: np.ndarray, second: np.ndarray, size: int) -> np.ndarray:
    """One int64 a pair, ``first * size + second``, so that pairs can be looked up in sorted arrays."""
    return first.astype(np.int64) * size + second


def positions_in(keys: np.ndarray, ordered: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each key stands in a sorted array without repeats (somewhere, if it does not), and whether it does.

    Example:
      >>> position, present = positions_in(np.array([7, 2]), np.array([2, 5]))
      >>> int(position[1]), present.tolist()
      (0, [False, True])
    """
    if not len(ordered):
        return np.zeros(keys.shape, np.int64), np.zeros(keys.shape, bool)
    position = np.minimum(np.searchsorted(ordered, keys), len(ordered) - 1)
    return position, ordered[position] == keys
