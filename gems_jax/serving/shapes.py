"""The few shapes that batches of requests have, so that the programs of all of them can be compiled before."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

_SHORTEST = 32
_LEAST_LISTED = 256


class Shape(NamedTuple):
    """One shape of a batch: a program of its own.

    Args:
      rows: of the batch.
      length: of prompts, in tokens.
      listed: items that a row may choose from, or leave out.
      beams: width of the search.
    """

    rows: int
    length: int
    listed: int
    beams: int


@dataclass(frozen=True)
class Shapes:
    """The shapes that requests are rounded up to.

    Args:
      batch_size: most rows; one row is the other choice.
      max_length: of a prompt in tokens; powers of two from 32 below it are the other choices.
      beams: width of the search; more results than that take one as wide as the next power of two.
      listed: items that a request may choose from or leave out; more take four times the room, and so on.

    Example:
      >>> shapes = Shapes(batch_size=8, max_length=100, beams=20, listed=100)
      >>> [(shape.rows, shape.length) for shape in shapes.usual()]
      [(1, 32), (1, 64), (1, 100), (8, 32), (8, 64), (8, 100)]
      >>> shapes.around(rows=3, length=40, listed=300, beams=shapes.width(10))
      Shape(rows=8, length=64, listed=1024, beams=20)
    """

    batch_size: int
    max_length: int
    beams: int
    listed: int

    def usual(self) -> Iterator[Shape]:
        """Those of requests for no more than ``beams`` results that list no more than ``listed`` items."""
        for rows, length in itertools.product(self._rows(), self._lengths()):
            yield Shape(rows, length, self._room(self.listed), self.beams)

    def around(self, rows: int, length: int, listed: int, beams: int) -> Shape:
        """The smallest shape that a batch fits into; ``beams`` as of `width`."""
        return Shape(
            next(size for size in self._rows() if size >= rows),
            next(size for size in self._lengths() if size >= length),
            self._room(max(listed, self.listed)),
            beams,
        )

    def width(self, k: int) -> int:
        """Beams of a search for k results."""
        return self.beams if k <= self.beams else 1 << (k - 1).bit_length()

    def batches(self, lengths: np.ndarray, widths: Sequence[int]) -> Iterator[list[int]]:
        """Rows of each batch: those of a width together, short ones first.

        Args:
          lengths: int ``[R]``, tokens of each prompt.
          widths: beams of each.
        """
        order = sorted(range(len(widths)), key=lambda row: (widths[row], int(lengths[row])))
        for _, group in itertools.groupby(order, key=lambda row: widths[row]):
            rows = list(group)
            for start in range(0, len(rows), self.batch_size):
                yield rows[start : start + self.batch_size]

    def _rows(self) -> list[int]:
        return sorted({1, self.batch_size})

    def _lengths(self) -> list[int]:
        doubled = itertools.takewhile(lambda size: size < self.max_length, (_SHORTEST << n for n in itertools.count()))
        return [*doubled, self.max_length]

    def _room(self, listed: int) -> int:
        room = _LEAST_LISTED
        while room < listed:
            room *= 4
        return room
