"""Lists and dictionaries written as text in a table's cell, read without evaluating anything."""

from __future__ import annotations

import json
import math
import re
from typing import Any

MAX_DEPTH = 16
# A list of plain numbers, as JSON, Python and numpy print it.
_NUMBERS = re.compile(r"\s*\[[\s\d,]*\]\s*")
_WORDS: dict[str, Any] = {
    "nan": math.nan, "NaN": math.nan, "None": None, "null": None, "True": True, "true": True, "False": False,
    "false": False, "inf": math.inf, "Infinity": math.inf,
}  # fmt: skip
_TOKEN = re.compile(
    r"\s*(?:(?P<mark>[\[\](){},:])"
    r"|(?P<number>[+-]?(?:\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?|inf\b|Infinity\b|nan\b|NaN\b))"
    r"|(?P<word>[A-Za-z_]+)"
    r"|(?P<text>'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"))",
    re.DOTALL,
)
# Where no text holds a quote or a backslash, Python's and JSON's ways of writing differ in these.
_DIFFERENCE = re.compile(r"'[^']*'|\bnan\b|\bNone\b|\bTrue\b|\bFalse\b|\}\s*\{")
_JSON = {"nan": "NaN", "None": "null", "True": "true", "False": "false"}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "0": "\0"}


def parse_cell(text: str) -> Any:
    """A JSON value, a Python literal, or an array as numpy prints it (no commas); ``nan`` and ``None`` included.

    Names other than the constants, calls and operators are errors: nothing is evaluated.

    Args:
      text: the cell.

    Returns:
      Lists, dictionaries with text keys, text, numbers, booleans and None; tuples become lists.

    Raises:
      ValueError: it is none of these, or nested more than 16 deep.

    Example:
      >>> parse_cell("[{'note_idx': 7, 'page_time': nan, 'click': 1}\\n {'note_idx': 9, 'click': 0}]")
      [{'note_idx': 7, 'page_time': nan, 'click': 1}, {'note_idx': 9, 'click': 0}]
      >>> parse_cell("[12 15\\n 18]")
      [12, 15, 18]
    """
    if _NUMBERS.fullmatch(text):
        return [int(word) for word in re.split(r"[\s,\[\]]+", text) if word]
    for candidate in (text, _as_json(text)):
        if candidate is not None:
            try:
                return _shallow(json.loads(candidate, strict=False))
            except (ValueError, RecursionError):
                pass
    return _Reader(text).value()


def _as_json(text: str) -> str | None:
    """Python's way of writing as JSON where that is a matter of a few words; None where it is not."""
    if '"' in text or "\\" in text or "'" not in text:
        return None

    def replace(match: re.Match[str]) -> str:
        matched = match.group()
        if matched[0] == "'":
            return f'"{matched[1:-1]}"'
        return "},{" if matched[0] == "}" else _JSON[matched]

    return _DIFFERENCE.sub(replace, text)


def _shallow(value: Any, depth: int = 0) -> Any:
    if depth > MAX_DEPTH:
        raise ValueError(f"nested more than {MAX_DEPTH} deep")
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for part in inner:
        if isinstance(part, dict | list):
            _shallow(part, depth + 1)
    return value


class _Reader:
    """Recursive descent over the tokens of one cell; commas between the values of a list may be missing."""

    def __init__(self, text: str):
        self.text = text
        self.position = 0
        self.kind = ""
        self.token = ""
        self.advance()

    def fail(self, problem: str) -> ValueError:
        return ValueError(f"{problem} at character {self.position} of {self.text[:60]!r}")

    def advance(self) -> None:
        match = _TOKEN.match(self.text, self.position)
        if match is None:
            if self.text[self.position :].strip():
                raise self.fail("neither a list, a dictionary, text nor a number")
            self.kind, self.token = "end", ""
            return
        self.kind, self.token = str(match.lastgroup), match.group(str(match.lastgroup))
        self.position = match.end()

    def value(self) -> Any:
        result = self.part(0)
        if self.kind != "end":
            raise self.fail("more than one value")
        return result

    def part(self, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise self.fail(f"nested more than {MAX_DEPTH} deep")
        kind, token = self.kind, self.token
        if kind == "end":
            raise self.fail("it ends too early")
        self.advance()
        if kind == "number":
            return _number(token)
        if kind == "text":
            return _unescape(token[1:-1])
        if kind == "word":
            if token not in _WORDS:
                raise self.fail(f"the name {token!r} is no value")
            return _WORDS[token]
        if token in "[(":
            return self.items("]" if token == "[" else ")", depth)
        if token == "{":
            return self.pairs(depth)
        raise self.fail(f"{token!r} is out of place")

    def items(self, end: str, depth: int) -> list[Any]:
        values = []
        while self.token != end or self.kind != "mark":
            values.append(self.part(depth + 1))
            if self.kind == "mark" and self.token == ",":
                self.advance()
        self.advance()
        return values

    def pairs(self, depth: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        while self.token != "}" or self.kind != "mark":
            key = self.part(depth + 1)
            if self.kind != "mark" or self.token != ":":
                raise self.fail("a dictionary's key needs a ':'")
            self.advance()
            values[str(key)] = self.part(depth + 1)
            if self.kind == "mark" and self.token == ",":
                self.advance()
            elif self.token != "}":
                raise self.fail("a dictionary's values need a ',' between them")
        self.advance()
        return values


def _number(token: str) -> int | float:
    sign = -1 if token[0] == "-" else 1
    bare = token.lstrip("+-")
    if bare in _WORDS:
        return float(sign * _WORDS[bare])
    return int(token) if bare.isdigit() else float(token)


def _unescape(text: str) -> str:
    if "\\" not in text:
        return text
    return re.sub(r"\\(U[0-9a-fA-F]{8}|u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|.)", _escape, text, flags=re.DOTALL)


def _escape(match: re.Match[str]) -> str:
    code = match.group(1)
    if len(code) > 1:
        return chr(int(code[1:], 16))
    return _ESCAPES.get(code, code)
