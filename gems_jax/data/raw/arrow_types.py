"""Columns of any Arrow type as one of a few: text, bytes, numbers, times, lists and structures of these."""

from __future__ import annotations

import decimal
from typing import Any

import numpy as np

# Digits that float64 keeps.
_EXACT = 15
# Seconds that are no time, and too few to be milliseconds of one.
_ABSURD = 1e10
_A_SECOND = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}


def plain_type(kind: Any, decode: bool = True) -> Any:
    """The type that a column of a type is read as; None where only Python's values tell.

    Lists and texts of any layout become those of the ordinary one, half floats and decimals numbers, decimals without a
    fraction text (whole numbers of any length), times microseconds, what is null text.

    Args:
      kind: an Arrow type.
      decode: whether dictionaries become what they hold.

    Example:
      >>> import pyarrow as pa
      >>> plain_type(pa.list_(pa.string_view(), 2)) == pa.list_(pa.string()), plain_type(pa.decimal128(9, 2))
      (True, DataType(double))
    """
    import pyarrow as pa

    types = pa.types
    if isinstance(kind, pa.BaseExtensionType):
        return None if types.is_fixed_size_binary(kind.storage_type) else plain_type(kind.storage_type, decode)
    if types.is_dictionary(kind):
        return plain_type(kind.value_type) if decode else kind
    if types.is_run_end_encoded(kind):
        return None
    if types.is_null(kind) or types.is_string(kind) or types.is_string_view(kind) or types.is_time(kind):
        return pa.string()
    if types.is_large_string(kind):
        return pa.large_string()
    if types.is_binary_view(kind) or types.is_fixed_size_binary(kind):
        return pa.binary()
    if types.is_decimal(kind):
        if kind.scale <= 0:
            return pa.string()
        return pa.float64() if kind.precision <= _EXACT else None
    if types.is_float16(kind):
        return pa.float64()
    if types.is_duration(kind):
        return None
    if types.is_timestamp(kind):
        return pa.timestamp("us", kind.tz)
    if types.is_map(kind):
        return kind
    if types.is_struct(kind):
        fields = [plain_type(field.type, decode) for field in kind]
        if any(field is None for field in fields):
            return None
        return pa.struct([field.with_type(plain) for field, plain in zip(kind, fields, strict=True)])
    if hasattr(kind, "value_type"):
        inner = plain_type(kind.value_type, decode)
        large = types.is_large_list(kind) or str(kind).startswith("large_list")
        return None if inner is None else (pa.large_list if large else pa.list_)(kind.value_field.with_type(inner))
    return kind


def plain_column(column: Any) -> Any:
    """A column as an array of its `plain_type`, or, where there is none, as a list of Python's plain values.

    Example:
      >>> import pyarrow as pa
      >>> plain_column(pa.array([["a", "b"]], pa.list_(pa.large_string(), 2))).to_pylist()
      [['a', 'b']]
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    wanted = plain_type(column.type)
    if wanted is not None:
        try:
            return column if column.type == wanted else column.cast(wanted)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            pass
    if pa.types.is_timestamp(column.type):
        # Parts of microseconds, or times beyond what they can count: these must not be taken for another unit.
        seconds = pc.divide(pc.cast(column.cast(pa.int64()), pa.float64(), safe=False), _A_SECOND[column.type.unit])
        return pc.min_element_wise(seconds, pa.scalar(_ABSURD), skip_nulls=False)
    return [_plain(value) for value in column.to_pylist()]


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, dict):
        return {str(name): _plain(part) for name, part in value.items()}
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, bytes):
        # Like bytes of columns that are no UTF-8: no text, and refused as such.
        return value.decode("utf-8", "surrogateescape")
    if isinstance(value, decimal.Decimal):
        text = format(value, "f")
        return text.rstrip("0").rstrip(".") if "." in text else text
    if hasattr(value, "total_seconds"):
        return value.total_seconds()
    return str(value)


def byte_lengths(column: Any) -> np.ndarray:
    """int64 ``[R]``: bytes of every row, dictionaries as what they stand for.

    Args:
      column: an array whose type is plain but for dictionaries.

    Example:
      >>> import pyarrow as pa
      >>> byte_lengths(pa.array([["a", "bcd"], [], None])).tolist()
      [12, 0, 0]
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    kind, types = column.type, pa.types
    if types.is_dictionary(kind):
        lengths = np.append(byte_lengths(column.dictionary), 0)
        return lengths[pc.fill_null(column.indices, len(lengths) - 1).to_numpy(zero_copy_only=False)]
    if types.is_string(kind) or types.is_large_string(kind) or types.is_binary(kind) or types.is_large_binary(kind):
        return _numbers(pc.binary_length(column)) + 4
    if types.is_list(kind) or types.is_large_list(kind):
        ends = np.cumsum(_numbers(pc.list_value_length(column)))
        inner = np.concatenate([[0], np.cumsum(byte_lengths(column.flatten()))])
        return np.diff(inner[np.concatenate([[0], ends])])
    if types.is_struct(kind):
        return sum((byte_lengths(part) for part in column.flatten()), np.zeros(len(column), np.int64))
    return np.full(len(column), -(-column.nbytes // max(len(column), 1)), np.int64)


def _numbers(column: Any) -> np.ndarray:
    import pyarrow.compute as pc

    return pc.fill_null(column, 0).to_numpy(zero_copy_only=False).astype(np.int64)
