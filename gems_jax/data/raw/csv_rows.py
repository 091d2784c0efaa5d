"""Whether lines inside a quoted column look like rows of the file: then a quotation mark has swallowed them."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable

_NUMBER = re.compile(r"[+-]?[\d.]+(?:[eE][+-]?\d+)?")
# From the strictest to the loosest; a column that has texts may have a word, too.
_WORDS = ("number", "word", "text", "padded")


class RowShapes:
    """The shapes of rows by what their columns hold: numbers, words, texts with spaces inside or around them, nothing.

    Prose has spaces after its commas and numbers in no column; rows that were swallowed look like those around them.

    Args:
      columns: of the file.
      delimiter: between them.

    Example:
      >>> shapes = RowShapes(3, ",")
      >>> shapes.learn([["i1", "thing, blue", "4"], ["i2", "", "5"]])
      >>> shapes.fits("i7,things,8"), shapes.fits("big, round, 8"), shapes.fits("i7,things")
      (True, False, False)
    """

    def __init__(self, columns: int, delimiter: str):
        self._delimiter = delimiter
        self._loosest = [-1] * columns
        self._empty = [False] * columns
        self.learnt = 0

    def learn(self, rows: Iterable[list[str]]) -> None:
        """Looks at rows; those of another width teach nothing."""
        for row in rows:
            self.learnt += 1
            if len(row) == len(self._loosest):
                for column, text in enumerate(row):
                    if not text:
                        self._empty[column] = True
                    elif "\n" not in text and "\r" not in text:
                        self._loosest[column] = max(self._loosest[column], _looseness(text))

    def fits(self, line: str) -> bool:
        """Whether a line could be a row."""
        parts = line.rstrip("\r\n").split(self._delimiter)
        if len(parts) != len(self._loosest):
            return False
        pairs = zip((part.strip('"') for part in parts), self._loosest, self._empty, strict=True)
        return all(_looseness(part) <= loosest if part else empty for part, loosest, empty in pairs)


def _looseness(text: str) -> int:
    if text != text.strip():
        return _WORDS.index("padded")
    if len(text.split()) > 1:
        return _WORDS.index("text")
    return _WORDS.index("number" if _NUMBER.fullmatch(text) else "word")


def parse(record: bytes, delimiter: str, quoted: bool) -> list[str]:
    """The columns of one record.

    Example:
      >>> parse(b'1,"a ""b"", c"\\r\\n', ",", quoted=True), parse(b'1\\t"a', "\\t", quoted=False)
      (['1', 'a "b", c'], ['1', '"a'])
    """
    text = record.decode("utf-8", "replace").rstrip("\r\n")
    if not quoted:
        return text.split(delimiter)
    before = csv.field_size_limit(max(csv.field_size_limit(), len(text) + 1))
    try:
        return next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), [])
    finally:
        csv.field_size_limit(before)
