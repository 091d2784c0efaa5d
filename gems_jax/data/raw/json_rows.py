"""Rows of JSON: an object a line, or one value after the other, as in an array; malformed ones cost themselves only."""

from __future__ import annotations

import codecs
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from gems_jax.data.raw.cells import parse_cell
from gems_jax.data.raw.raw_files import read_blocks, split_lines
from gems_jax.data.raw.raw_rows import ReadRequest
from gems_jax.data.raw.reasons import MALFORMED, NO_OBJECT, NOT_UTF8

# Deeper values are no rows of anything, and Python's functions on them end in a RecursionError.
MAX_DEPTH = 64
DEEP = f"it is nested more than {MAX_DEPTH} deep"
TOO_LONG = "too long"
_BLOCK = 2**20
_DECODER = json.JSONDecoder()
_BETWEEN = re.compile(r"[\s,]*")
# Where reading can go on after a malformed object.
_NEXT = re.compile(r"\}\s*,?\s*(?=\{)")
# A byte that is no UTF-8, kept as what Python calls a surrogate escape.
_ESCAPED = re.compile("[\udc80-\udcff]")


def read_rows(request: ReadRequest) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number, from 1, and value of every object: a line each, or in an array, or each over several lines.

    Raises:
      ValueError: the file is cut off or holds more than it may.
    """
    blocks = read_blocks(request.path, request.limits, _BLOCK)
    first = b""
    while not first.strip() and (block := next(blocks, b"")):
        first += block
    beginning = first.lstrip()[:4096]
    is_array = beginning[:1] == b"[" and beginning[1:].lstrip()[:1] in (b"{", b"]", b"")
    is_pretty = beginning[:1] == b"{" and beginning.partition(b"\n")[0].strip() == b"{"
    every = itertools.chain([first], blocks)
    yield from _values(request, every, is_array) if is_array or is_pretty else _lines(request, every)


def _lines(request: ReadRequest, blocks: Iterable[bytes]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, (line, too_long) in enumerate(split_lines(blocks, request.limits.row), start=1):
        if not line.strip():
            continue
        row: Any = None
        if too_long:
            problem = request.limits.too_long
        else:
            try:
                problem, row = _line_value(line.decode("utf-8"))
            except UnicodeDecodeError:
                problem = NOT_UTF8
        if problem:
            request.leave_out(number, problem, line[:4096].decode("utf-8", "replace").rstrip())
        else:
            yield number, row


def _line_value(text: str) -> tuple[str, Any]:
    """Says what is wrong with a line, or gives its object; some published files have Python dictionaries for JSON."""
    try:
        value = json.loads(text)
    except RecursionError:
        return DEEP, None
    except ValueError:
        if text.lstrip()[:2] != "{'":
            return MALFORMED, None
        try:
            value = parse_cell(text)
        except ValueError:
            return MALFORMED, None
    return _problem(value, text), value


def _problem(value: Any, text: str) -> str:
    if not isinstance(value, dict):
        return NO_OBJECT
    return DEEP if text.count("[") + text.count("{") > MAX_DEPTH and is_deep(value) else ""


def is_deep(value: Any, limit: int = MAX_DEPTH) -> bool:
    """Whether lists and dictionaries are nested more than ``limit`` deep.

    Example:
      >>> is_deep([[1], {"a": [2]}], 2), is_deep([[1], {"a": [2]}], 3)
      (True, False)
    """
    level = [value]
    for _ in range(limit + 1):
        inner = [part.values() if isinstance(part, dict) else part for part in level if isinstance(part, dict | list)]
        level = [part for parts in inner for part in parts if isinstance(part, dict | list)]
        if not inner:
            return False
    return True


def _values(request: ReadRequest, blocks: Iterable[bytes], is_array: bool) -> Iterator[tuple[int, dict[str, Any]]]:
    text = JsonText(blocks)
    text.skip()
    text.position += is_array
    number = 0
    while True:
        before = text.position
        text.skip()
        if text.at_end() or (is_array and text.buffer[text.position] == "]"):
            break
        if not number:
            following = _following(text.buffer[before : text.position])
        number += 1
        start = text.position
        value, problem = text.value(request.limits.row)
        raw = text.buffer[start : text.position] if not problem else text.buffer[start : start + 4096]
        if problem:
            reason = request.limits.too_long if problem == TOO_LONG else problem
            text.skip_to(following)
        else:
            reason = NOT_UTF8 if _ESCAPED.search(raw) else _problem(value, raw)
        if reason:
            request.leave_out(number, reason, raw[:4096])
        else:
            yield number, value
        text.forget()
    if is_array:
        if text.at_end():
            raise ValueError(f"{request.path} is cut off: its JSON array is not closed; get the whole file")
        text.position += 1
        text.skip()
        if not text.at_end():
            raise ValueError(f"{request.path} goes on after its JSON array is closed; write one array, or a row a line")


def _following(before: str) -> re.Pattern[str]:
    """Where the next object begins, by what stands before the first: on a line of its own it is one so far indented."""
    indent = before.rpartition("\n")
    return re.compile(rf"\n{re.escape(indent[2])}(?=\{{)") if indent[1] else _NEXT


class JsonText:
    """A text that is decoded as far as it is needed; ``position`` is where reading stands in ``buffer``.

    Args:
      blocks: of its bytes.
    """

    def __init__(self, blocks: Iterable[bytes]):
        self._blocks = iter(blocks)
        self._decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
        self._ended = False
        self.buffer, self.position = "", 0

    def more(self, least: int = 1) -> bool:
        """Reads on, ``least`` characters if there are as many; whether there was anything."""
        pieces, count = [self.buffer], 0
        while count < least and not self._ended:
            block = next(self._blocks, b"")
            self._ended = not block
            pieces.append(self._decode(block, self._ended))
            count += len(pieces[-1])
        self.buffer = "".join(pieces)
        return count > 0

    def skip(self) -> None:
        """Behind white space and commas."""
        while True:
            match = _BETWEEN.match(self.buffer, self.position)
            self.position = match.end() if match else self.position
            if self.position < len(self.buffer) or not self.more():
                return

    def at_end(self) -> bool:
        """Whether nothing follows."""
        return self.position >= len(self.buffer) and not self.more()

    def forget(self) -> None:
        """Drops what was read."""
        if self.position > _BLOCK:
            self.buffer, self.position = self.buffer[self.position :], 0

    def value(self, limit: int) -> tuple[Any, str]:
        """The next JSON value, or what is wrong; the position goes behind a value, and stays where there is none."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self.buffer, self.position)
            except RecursionError:
                return None, DEEP
            except json.JSONDecodeError as error:
                # The end of what was read so far is no error yet.
                cut = error.pos >= len(self.buffer) - 12 or error.msg.startswith("Unterminated string")
                if not cut or self._ended:
                    return None, MALFORMED
            except ValueError:
                return None, MALFORMED
            else:
                if end < len(self.buffer) or self._ended:
                    length, self.position = end - self.position, end
                    return value, TOO_LONG if length > limit else ""
            have = len(self.buffer) - self.position
            if have > limit:
                return None, TOO_LONG
            # Twice as much each time: a long value is not parsed often.
            self.more(max(_BLOCK, have))

    def skip_to(self, following: re.Pattern[str]) -> None:
        """Behind a malformed value, to where the next one seems to begin; else to the bracket that ends the text."""
        self.position += 1
        while not (match := following.search(self.buffer, self.position)):
            # The beginning of the next value may be cut in two.
            start = max(self.position, len(self.buffer) - 256)
            if not self.more():
                bare = self.buffer.rstrip()
                self.position = max(min(self.position, len(bare)), len(bare) - bare.endswith("]"))
                return
            self.buffer, self.position = self.buffer[start:], 0
        self.position = match.end()
