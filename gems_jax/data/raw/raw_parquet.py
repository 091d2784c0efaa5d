"""Rows of parquet files, a few at a time; what dictionaries and runs blow up is measured before it is made."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from gems_jax.data.raw.arrow_types import byte_lengths, plain_column, plain_type
from gems_jax.data.raw.raw_files import codec_of
from gems_jax.data.raw.raw_rows import RawRows, ReadRequest

BLOCK_ROWS = 8192
# Bytes that a batch holds once dictionaries are decoded, about, and values.
_BATCH_BYTES = 64 * 2**20
_BATCH_VALUES = 4_194_304
_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "FLOAT": 4, "INT64": 8, "DOUBLE": 8, "INT96": 12}


def read_parquet(request: ReadRequest) -> Iterator[RawRows]:
    """The rows of one file, those columns only that have a role; rows that are too long are quarantined.

    Raises:
      ValueError: the file is no parquet, is cut off, lacks a needed column, or holds more than it may.
    """
    import pyarrow as pa
    from pyarrow import parquet

    with request.path.open("rb") as raw:
        if codec := codec_of(raw.read(16)):
            raise ValueError(f"{request.path} is compressed as a whole, by {codec}; decompress it")
    try:
        with parquet.ParquetFile(request.path) as file:
            names = list(file.schema_arrow.names)
            roles = request.present(names)
            leaves = _leaves(file, set(roles.values()))
            batch_rows = _check_size(request, file.metadata, [number for number, _ in leaves])
            texts = [path for _, path in leaves if path is not None]
        with parquet.ParquetFile(request.path, read_dictionary=texts) as file:
            yield from _batches(request, file, roles, tuple(names), batch_rows)
    except MemoryError:
        raise ValueError(
            f"{request.path} needs more memory than there is: a cell of a column holds too much; leave the column out "
            "or write the file anew in smaller rows"
        ) from None
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{request.path} cannot be read as parquet ({error}); is it whole?") from None


def _leaves(file: Any, names: set[str]) -> list[tuple[int, str | None]]:
    """Numbers of the columns as they are stored, and paths of those that are text."""
    leaves: list[tuple[int, str | None]] = []
    for number in range(len(file.schema)):
        column = file.schema.column(number)
        if column.path.split(".")[0] in names or column.path in names:
            is_text = column.physical_type == "BYTE_ARRAY" and column.logical_type.type in ("STRING", "NONE", "JSON")
            leaves.append((number, column.path if is_text else None))
    return leaves


def _check_size(request: ReadRequest, about: Any, leaves: list[int]) -> int:
    """Rows a batch may have; raises where what the file says of itself is too much."""
    held, values = 0, 1
    for group in range(about.num_row_groups):
        for leaf in leaves:
            chunk = about.row_group(group).column(leaf)
            # A value is a width or an offset at least, however well it is encoded.
            width = _WIDTHS.get(chunk.physical_type, 4)
            held += max(chunk.total_uncompressed_size, chunk.num_values * width)
            values = max(values, -(-chunk.num_values // max(about.row_group(group).num_rows, 1)))
    if held > request.limits.allowed(request.path):
        raise request.limits.too_large(request.path, held)
    return max(1, min(BLOCK_ROWS, _BATCH_VALUES // values))


def _batches(
    request: ReadRequest, file: Any, roles: dict[str, str], all_names: tuple[str, ...], rows: int
) -> Iterator[RawRows]:
    row, held, allowed = 0, 0, request.limits.allowed(request.path)
    for record in file.iter_batches(rows, columns=sorted(set(roles.values()))):
        names = list(record.schema.names)
        columns = {name: _with_dictionaries(record.column(names.index(name))) for name in set(roles.values())}
        lengths = sum((byte_lengths(column) for column in columns.values()), np.zeros(record.num_rows, np.int64))
        numbers = np.arange(row + 1, row + 1 + record.num_rows)
        row += record.num_rows
        long = lengths > request.limits.row
        for position in np.flatnonzero(long).tolist():
            request.leave_out(int(numbers[position]), request.limits.too_long, f"{int(lengths[position]):,} bytes")
        lengths[long] = 0
        held += int(lengths.sum())
        if held > allowed:
            raise request.limits.too_large(request.path, held)
        for index in _pieces(lengths, ~long):
            yield RawRows(
                request.path,
                numbers[index],
                {role: plain_column(_take(columns[name], index)) for role, name in roles.items()},
                all_names,
            )


def _with_dictionaries(column: Any) -> Any:
    """The column in ordinary layouts, its dictionaries as they are."""
    import pyarrow as pa

    wanted = plain_type(column.type, decode=False)
    try:
        return column if wanted is None or wanted == column.type else column.cast(wanted)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return column


def _take(column: Any, index: np.ndarray) -> Any:
    whole = len(index) and index[-1] - index[0] == len(index) - 1
    return column.slice(int(index[0]), len(index)) if whole else column.take(index)


def _pieces(lengths: np.ndarray, keep: np.ndarray) -> Iterator[np.ndarray]:
    """Rows that stay, as many together as hold little."""
    index = np.flatnonzero(keep)
    part = np.cumsum(lengths[index]) // _BATCH_BYTES
    for piece in np.split(index, np.flatnonzero(np.diff(part)) + 1):
        if len(piece):
            yield piece
