"""Columns of raw tables as text, lists of text and times; what a cell should not hold is marked, never an error."""

from __future__ import annotations

import datetime
import math
import re
from typing import Any

import numpy as np

from gems_jax.data.cells import parse_cell
from gems_jax.data.ragged import Ragged

# 2100-01-01 in seconds: a later time is absurd.
LATEST = 4_102_444_800.0
# From where on a number is milli-, micro- or nanoseconds (of 1973), and how many of them a second has.
_UNITS = ((1e11, 1e3), (1e14, 1e6), (1e17, 1e9))
_SEPARATORS = r"[\s,;|]+"
_STRUCTURE = re.compile(r"[\[\](){}'\"]")


def as_text(column: Any) -> tuple[Any, np.ndarray]:
    """A pyarrow string array, null where a cell is empty, and bool `[R]`: cells that are no text or number.

    Whole numbers are written without a decimal point, so that 12, 12.0 and "12" are one id.
    """
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
            return as_text([_decoded(value) for value in pc.cast(column, pa.binary()).to_pylist()])
        text = pc.utf8_trim_whitespace(text)
        return pc.if_else(pc.equal(text, ""), None, text), np.zeros(len(column), bool)
    return as_text(column.to_pylist())


def as_lists(column: Any) -> tuple[Ragged, Any, np.ndarray]:
    """Lists of ids: numbers into a pyarrow string array of all ids one after the other, and cells that are no list.

    A cell is a list, the text of one (JSON, Python, numpy), or ids with spaces, commas, semicolons or bars between.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if isinstance(column, list):
        return _python_lists(column)
    if _is_list(column):
        flat, flat_bad = as_text(column.flatten())
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
        lists = Ragged.from_lengths(np.arange(len(flat)), lengths)
        wrong = flat_bad | np.asarray(flat.is_null())
        bad = np.bincount(lists.row_of[wrong], minlength=len(column)) > 0
        return lists, flat, bad
    if not (_is_binary(column) or pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        text, bad = as_text(column)
        return _split(text), *_flattened(text, bad)
    text, bad = as_text(column)
    plain = pc.utf8_trim(text, "[]")
    if bad.any() or pc.any(pc.match_substring_regex(plain, r"[\[\](){}'\"]")).as_py():
        return _python_lists([value if value is not None else None for value in text.to_pylist()], bad)
    return _split(plain), *_flattened(plain, bad)


def _split(text: Any) -> Ragged:
    import pyarrow.compute as pc

    parts = _parts(text)
    lengths = pc.list_value_length(parts).to_numpy(zero_copy_only=False)
    return Ragged.from_lengths(np.arange(int(lengths.sum())), lengths)


def _flattened(text: Any, bad: np.ndarray) -> tuple[Any, np.ndarray]:
    return _parts(text).flatten(), bad


def _parts(text: Any) -> Any:
    """Ids of every cell; an empty cell has none."""
    import pyarrow as pa
    import pyarrow.compute as pc

    marked = pc.fill_null(pc.utf8_trim(text, " \t\r\n,;|"), "")
    parts = pc.split_pattern_regex(marked, _SEPARATORS)
    empty = pc.equal(marked, "")
    if not pc.any(empty).as_py():
        return parts
    lengths = np.where(np.asarray(empty), 0, pc.list_value_length(parts).to_numpy(zero_copy_only=False))
    flat = parts.flatten()
    flat = flat.filter(pc.not_equal(flat, ""))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), flat)


def _python_lists(column: list[Any], bad: np.ndarray | None = None) -> tuple[Ragged, Any, np.ndarray]:
    import pyarrow as pa

    wrong = np.zeros(len(column), bool) if bad is None else bad.copy()
    flat: list[str] = []
    lengths = np.zeros(len(column), np.int64)
    for row, value in enumerate(column):
        ids = _ids(value)
        if ids is None:
            wrong[row] = True
        else:
            flat.extend(ids)
            lengths[row] = len(ids)
    return Ragged.from_lengths(np.arange(len(flat)), lengths), pa.array(flat, pa.string()), wrong


def _ids(value: Any) -> list[str] | None:
    if isinstance(value, str):
        inside = value.strip().removeprefix("[").removesuffix("]")
        if not _STRUCTURE.search(inside):
            return [word for word in re.split(_SEPARATORS, inside) if word]
        try:
            value = parse_cell(value)
        except ValueError:
            return None
    if value is None or value == "":
        return []
    ids = [id_text(part) for part in (value if isinstance(value, list | tuple) else [value])]
    return None if any(not part for part in ids) else [str(part) for part in ids]


def as_times(column: Any) -> tuple[np.ndarray, np.ndarray]:
    """Seconds, float64 `[R]` with nan for empty cells, and bool `[R]`: cells that are no time between 1970 and 2100.

    Numbers are seconds, or milli-, micro- or nanoseconds where they are too large for that; text may be an ISO date.

    Example:
        >>> as_times([1700000000, "1700000000000", "2023-11-14T22:13:20", None, "yesterday"])[0].tolist()
        [1700000000.0, 1700000000.0, 1700000000.0, nan, nan]
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if not isinstance(column, list) and (pa.types.is_timestamp(column.type) or pa.types.is_date(column.type)):
        column = pc.divide(pc.cast(pc.cast(column, pa.timestamp("us")), pa.int64()), 1e6)
        seconds = pc.cast(column, pa.float64()).to_numpy(zero_copy_only=False)
        return seconds, ~((seconds >= 0) & (seconds <= LATEST)) & ~np.isnan(seconds)
    text, bad = as_text(column)
    missing = np.asarray(text.is_null()) & ~bad
    try:
        raw = pc.cast(text, pa.float64()).to_numpy(zero_copy_only=False).astype(np.float64)
    except pa.ArrowInvalid:
        raw = np.asarray([_seconds(value) for value in text.to_pylist()], np.float64)
    seconds = raw.copy()
    for least, unit in _UNITS:
        seconds = np.where(np.abs(raw) >= least, raw / unit, seconds)
    absurd = ~((seconds >= 0) & (seconds <= LATEST)) & ~missing
    return np.where(absurd | missing, np.nan, seconds), bad | absurd


def _seconds(value: str | None) -> float:
    if value is None:
        return math.nan
    try:
        return float(value)
    except ValueError:
        pass
    try:
        moment = datetime.datetime.fromisoformat(value)
    except ValueError:
        return math.inf
    return moment.replace(tzinfo=moment.tzinfo or datetime.UTC).timestamp()


def id_text(value: Any) -> Any:
    """Text of one cell, None for an empty one, False for what is no text or number.

    Example:
        >>> id_text(" a1 "), id_text(12.0), id_text(""), id_text([1])
        ('a1', '12', None, False)
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
        return str(int(value)) if value.is_integer() else str(value)
    return str(value)


def _decoded(value: bytes | None) -> Any:
    if value is None:
        return None
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return b""  # no text


def _is_utf8(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_binary(column: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type))


def _is_list(column: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_list(column.type) or pa.types.is_large_list(column.type))
