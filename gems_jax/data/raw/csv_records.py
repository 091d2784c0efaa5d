"""Where records of a delimited text end, with quotation marks as in RFC 4180 or without; and what goes wrong there."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

_LF, _CR, _QUOTE = 10, 13, 34


class CsvRecords(NamedTuple):
    """Ends of whole records (line breaks included) in a block of bytes, and numbers of those that are malformed."""

    ends: np.ndarray
    malformed: list[int]


class UnclosedError(Exception):
    """A quotation mark that nothing closes, at a position in the block."""

    def __init__(self, position: int):
        super().__init__(position)
        self.position = position


class SwallowedError(Exception):
    """A quotation mark at a position in the block is closed lines later, in the middle of a column."""

    def __init__(self, position: int, end: int):
        super().__init__(position, end)
        self.position, self.end = position, end


def line_ends(block: bytes, last: bool) -> np.ndarray:
    """Where lines end, behind ``\\n``, ``\\r\\n`` or ``\\r``.

    Args:
      block: bytes from the beginning of a line on.
      last: whether nothing follows; what has no line break is a line then.

    Example:
      >>> line_ends(b"a\\r\\nb\\rc\\nd", last=True).tolist()
      [3, 5, 7, 8]
    """
    data = np.frombuffer(block, np.uint8)
    ending = data == _LF
    returns = np.flatnonzero(data == _CR)
    if len(returns):
        following = np.append(data[1:], _QUOTE if last else _LF)
        ending[returns[following[returns] != _LF]] = True
    ends = np.flatnonzero(ending) + 1
    if last and len(data) and (not len(ends) or ends[-1] < len(data)):
        ends = np.append(ends, len(data))
    return ends


def split_plain(block: bytes, last: bool) -> CsvRecords:
    """Records of a text without quoting: its lines."""
    return CsvRecords(line_ends(block, last), [])


def split_quoted(block: bytes, delimiter: bytes, last: bool) -> CsvRecords:
    """Records of a text with quoting as in RFC 4180; a quotation mark inside a column that has none first is text.

    Args:
      block: bytes from the beginning of a record on.
      delimiter: one byte.
      last: whether nothing follows.

    Raises:
      UnclosedError: nothing follows and a quotation mark is open.
      SwallowedError: a quotation mark is closed lines after it was opened, and text follows.

    Example:
      >>> split_quoted(b'1,"a\\nb ""c"", d"\\n2,6" nails\\n3,"4', b",", last=False).ends.tolist()
      [17, 28]
    """
    data = np.frombuffer(block, np.uint8)
    quotes = np.flatnonzero(data == _QUOTE)
    ends = line_ends(block, last)
    if not len(quotes):
        return CsvRecords(ends, [])
    outside = np.zeros(256, bool)
    outside[[delimiter[0], _LF, _CR]] = True
    opening, closing = quotes[::2], quotes[1::2]
    # Where a closing mark and the next opening one touch they are a doubled one.
    doubled = np.isin(opening - 1, closing)
    before = np.where(opening > 0, data[opening - 1], _LF)
    after = np.where(closing < len(data) - 1, data[np.minimum(closing + 1, len(data) - 1)], _LF)
    if not (np.all(outside[before] | doubled) and np.all(outside[after] | (after == _QUOTE))):
        return _split_loose(block, ends, delimiter, last)
    # Every mark of even number opens, so what has an odd number of them before it is inside.
    if last and len(quotes) % 2:
        raise UnclosedError(int(opening[~doubled][-1]))
    return CsvRecords(ends[np.searchsorted(quotes, ends) % 2 == 0], [])


def _split_loose(block: bytes, ends: np.ndarray, delimiter: bytes, last: bool) -> CsvRecords:
    """The same record by record, where marks stand anywhere."""
    quoted = re.compile(rb'"(?:[^"]++|"")*+"')
    mark = re.escape(delimiter)
    # A column without quotation marks around it, up to its delimiter or the end of the line.
    plain = re.compile(rb"[^" + mark + rb"\r\n]*+")
    record_ends: list[int] = []
    malformed: list[int] = []
    position, line, ends_list = 0, 0, ends.tolist()
    while line < len(ends_list):
        end = ends_list[line]
        if block.find(b'"', position, end) < 0:
            record_ends.append(end)
            position, line = end, line + 1
            continue
        start, wrong, opened = position, False, -1
        while True:
            if block[position : position + 1] == b'"':
                match = quoted.match(block, position)
                if match is None:
                    if last:
                        raise UnclosedError(position)
                    return CsvRecords(np.asarray(record_ends, np.int64), malformed)
                if block.find(b"\n", position, match.end()) >= 0 or block.find(b"\r", position, match.end()) >= 0:
                    opened = position
                position = match.end()
                if position == len(block) and not last:
                    return CsvRecords(np.asarray(record_ends, np.int64), malformed)
                if block[position : position + 1] not in (delimiter, b"\n", b"\r", b""):
                    if opened >= 0:
                        raise SwallowedError(opened, position)
                    wrong = True
            rest = plain.match(block, position)
            assert rest is not None
            position = rest.end()
            if block[position : position + 1] != delimiter:
                break
            position += 1
        while line < len(ends_list) and ends_list[line] <= position and ends_list[line] != len(block):
            line += 1
        if line == len(ends_list):
            break
        position, line = ends_list[line], line + 1
        if wrong:
            malformed.append(len(record_ends))
        record_ends.append(position)
        assert position > start
    return CsvRecords(np.asarray(record_ends, np.int64), malformed)
