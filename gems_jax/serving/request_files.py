"""Files of requests, read a block at a time: each row is a request's fields, or the reason why it cannot be read."""

import heapq
import operator
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from gems_jax.data.raw.id_lists import Division, read_lists
from gems_jax.data.raw.quarantine import Quarantine
from gems_jax.data.raw.raw_files import codec_of, kind_of
from gems_jax.data.raw.raw_rows import RawRows, plain_value
from gems_jax.data.raw.raw_table import read_batches

# `id` comes back with the answer; the others are those of a `Request`.
FIELDS = ("id", "task", "user", "history", "query", "k", "allow", "deny")
_number = operator.attrgetter("number")
_LISTS = ("history", "allow", "deny")


class RequestRow(NamedTuple):
    """A row of a file of requests.

    Args:
      number: from 1; in JSON lines the line.
      values: of its fields, ``None`` where the row cannot be read.
      reason: why it cannot; the same words for the same cause.
      detail: of such a row, as it stands there.
    """

    number: int
    values: dict[str, Any] | None
    reason: str = ""
    detail: str = ""


def read_requests(path: Path) -> Iterator[RequestRow]:
    """The rows of a file of requests, in their order.

    Lists of items are lists or text: JSON, or ids with spaces, commas, semicolons or bars between. An empty cell of a
    CSV file is a field that is not given.

    Args:
      path: ``.jsonl``, ``.csv`` or ``.parquet``, see `gems_jax.data.raw.raw_files.kind_of`.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is of another kind, cut off, or has a column that no request has.
    """
    quarantine = Quarantine(max_bad_fraction=1.0)
    is_text = kind_of(path) == "csv"
    for block in read_batches(path, {name: name for name in FIELDS}, (), quarantine, "request", "", None, None):
        unknown = [name for name in block.names if name.strip() not in FIELDS]
        if unknown:
            raise ValueError(
                f"{path} has the column {unknown[0]!r}, which no request has: rename it, or leave it out; a request "
                f"has {', '.join(FIELDS)}"
            )
        # One by one: a block has many, and the collector of cycles would look at what lives of each.
        yield from heapq.merge(_rows(block, is_text), sorted(_unread(quarantine), key=_number), key=_number)
    yield from _unread(quarantine)


def count_requests(path: Path) -> int | None:
    """How many rows a file is likely to have; ``None`` where that is not known before it is read."""
    if kind_of(path) == "parquet":
        from pyarrow import parquet

        return int(parquet.read_metadata(path).num_rows)
    with path.open("rb") as file:
        if codec_of(file.read(16)):
            return None
        file.seek(0)
        lines = sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
    return lines - (kind_of(path) == "csv")


def _rows(block: RawRows, is_text: bool) -> Iterator[RequestRow]:
    columns = {name: [plain_value(cell) for cell in column] for name, column in block.columns.items()}
    bad: dict[int, str] = {}
    for name in set(_LISTS) & set(columns):
        columns[name], wrong = _lists(columns[name], is_text)
        bad |= dict.fromkeys(wrong, f"its {name} is no list of items")
    if "k" in columns:
        columns["k"] = [_whole(cell) for cell in columns["k"]]
    for row, number in enumerate(block.numbers.tolist()):
        values = {name: column[row] for name, column in columns.items()}
        if is_text:
            values = {name: None if value == "" else value for name, value in values.items()}
        reason = bad.get(row, "")
        yield RequestRow(number, None if reason else values, reason, str(values) if reason else "")


def _lists(cells: list[Any], is_text: bool) -> tuple[list[Any], list[int]]:
    """Cells with lists for texts of lists, and which of them are none."""
    rows = [row for row, cell in enumerate(cells) if isinstance(cell, str) and (cell or not is_text)]
    read = read_lists([cells[row] for row in rows], Division())
    names = read.texts.to_pylist()
    result = list(cells)
    for place, row in enumerate(rows):
        result[row] = [names[index] for index in read.indices[place].tolist()]
    return result, [row for place, row in enumerate(rows) if read.bad[place]]


def _whole(cell: Any) -> Any:
    """A number of items as text, or as tables with gaps have it, as a whole number; all else as it is."""
    if isinstance(cell, float):
        return None if cell != cell else int(cell) if cell.is_integer() else cell
    return int(cell) if isinstance(cell, str) and cell.strip().isdecimal() else cell


def _unread(quarantine: Quarantine) -> Iterator[RequestRow]:
    """Rows that the readers have left out since the last time."""
    left_out, quarantine.rows = quarantine.rows, []
    for row in left_out:
        number = int(row["id"].rpartition(" ")[2])
        yield RequestRow(number, None, row["reason"], row.get("detail", ""))
