"""Columns of raw tables as text and lists of text; what a cell should not hold is marked, never an error."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from gems_jax.data.raw.blank import MISSING_WORDS, without_blanks, without_words

# From here on floating-point numbers stand for several whole ones.
_EXACT = 2.0**53


def as_text(column: Any) -> tuple[Any, np.ndarray]:
    """A pyarrow string array, null where a cell says nothing, and bool ``[R]``: cells that are no text or number.

    Words for nothing (``nan``, ``NULL``, ...) and text without a visible character say nothing.
    """
    text, bad = as_written(column)
    return without_words(text, MISSING_WORDS)[0], bad


def as_written(column: Any) -> tuple[Any, np.ndarray]:
    """As `as_text`, with words for nothing as they stand there.

    Whole numbers are written without a decimal point.
    """
    text, bad = _texts(column)
    return without_blanks(text), bad


def _texts(column: Any) -> tuple[Any, np.ndarray]:
    import pyarrow as pa
    import pyarrow.compute as pc

    if isinstance(column, list):
        values = [id_text(value) for value in column]
        bad = np.asarray([value is False for value in values], bool)
        return pa.array([value or None for value in values], pa.string()), bad
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_integer(column.type):
        return pc.cast(column, pa.string()), np.zeros(len(column), bool)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type) or _is_binary(column):
        try:
            text = pc.cast(pc.cast(column, pa.binary()), pa.string())
        except pa.ArrowInvalid:
            return _texts([_decoded(value) for value in pc.cast(column, pa.binary()).to_pylist()])
        text = pc.utf8_trim_whitespace(text)
        return pc.if_else(pc.equal(text, ""), None, text), np.zeros(len(column), bool)
    return _texts(column.to_pylist())


def as_words(column: Any) -> tuple[Any, np.ndarray]:
    """As `as_written`, and of a list or a dictionary the words of its values with spaces between.

    Example:
      >>> as_words([["made of steel", {"width": 3}], "plain", None])[0].to_pylist()
      ['made of steel width 3', 'plain', None]
    """
    values = column if isinstance(column, list) else column.to_pylist() if _is_nested(column) else None
    if values is None:
        return as_written(column)
    return as_written(
        [" ".join(_words(value)) if isinstance(value, list | tuple | dict) else value for value in values]
    )


def _words(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield str(name)
            yield from _words(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _words(inner)
    elif text := id_text(value):
        yield text


def id_text(value: Any) -> Any:
    """Text of one cell, None for an empty one, False for what is no text or number.

    Example:
      >>> id_text(" a1 "), id_text(12.0), id_text(""), id_text([1])
      ('a1', '12', None, False)
      >>> id_text(2**53), id_text(2.0**53)  # a float of that size may have been another number
      ('9007199254740992', False)
    """
    if value is None:
        return None
    if isinstance(value, str):
        # A lone surrogate, which JSON can write, is no text: it has no UTF-8.
        return (value.strip() or None) if value.isascii() or _is_utf8(value) else False
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if isinstance(value, float):
        if math.isnan(value):
            return None
        if abs(value) >= _EXACT:
            return False
        return str(int(value)) if value.is_integer() else str(value)
    return str(value)


def _decoded(value: bytes | None) -> Any:
    if value is None:
        return None
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return b""  # no text


def not_utf8(column: Any) -> np.ndarray:
    """bool ``[R]``: cells of bytes in another encoding.

    Example:
      >>> import pyarrow as pa
      >>> not_utf8(pa.array([b"caf\\xc3\\xa9", b"caf\\xe9", None])).tolist()
      [False, True, False]
    """
    if isinstance(column, list) or not _is_binary(column):
        return np.zeros(len(column), bool)
    return np.asarray([_decoded(value) == b"" for value in column.to_pylist()], bool)


def _is_utf8(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_binary(column: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type))


def is_list(column: Any) -> bool:
    """Whether a pyarrow array holds lists."""
    import pyarrow as pa

    return bool(pa.types.is_list(column.type) or pa.types.is_large_list(column.type))


def is_textual(column: Any) -> bool:
    """Whether a pyarrow array holds text or bytes."""
    import pyarrow as pa

    return _is_binary(column) or bool(pa.types.is_string(column.type) or pa.types.is_large_string(column.type))


def _is_nested(column: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_nested(column.type))
