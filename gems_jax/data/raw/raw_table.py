"""Tables of raw rows, CSV, JSON or parquet, read block by block; rows that cannot be read are quarantined."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gems_jax.data.raw.json_rows import read_rows
from gems_jax.data.raw.options import Reading
from gems_jax.data.raw.quarantine import Quarantine
from gems_jax.data.raw.raw_csv import read_csv
from gems_jax.data.raw.raw_files import Limits, kind_of
from gems_jax.data.raw.raw_parquet import read_parquet
from gems_jax.data.raw.raw_rows import RawRows, ReadRequest

BLOCK_ROWS = 65_536


def read_batches(
    path: Path,
    roles: Mapping[str, str],
    needed: tuple[str, ...],
    quarantine: Quarantine,
    kind: str = "row",
    option: str = "",
    reading: Reading | None = None,
    options: str | None = "files.",
) -> Iterator[RawRows]:
    """The rows of one file, those columns only that have a role.

    Args:
      path: ``.csv``, ``.tsv``, ``.jsonl``, ``.json`` or ``.parquet``, see `gems_jax.data.raw.raw_files.kind_of`.
      roles: role to the column's name.
      needed: roles whose columns must be there.
      quarantine: takes rows that cannot be read.
      kind: of row, in the quarantine.
      option: that says what columns are called, for messages; empty where there is none.
      reading: delimiter, quoting, limits; None: the defaults, of a source that has no such options.
      options: what the names of these options begin with; None: people cannot set them.

    Yields:
      Batches; a role whose column is missing is missing.

    Raises:
      ValueError: the file is of none of these kinds, is cut off, holds more than it may, or lacks a needed column.
    """
    reader = {"csv": read_csv, "json": _read_json, "parquet": read_parquet}.get(kind_of(path) or "")
    if reader is None:
        raise ValueError(
            f"{path} is none of .csv, .tsv, .jsonl, .json and .parquet (text also as .gz, .bz2, .zst or .lz4); rename "
            "or convert it"
        )
    limits = Limits.of(reading, options)
    yield from reader(ReadRequest(path, dict(roles), needed, option, quarantine, kind, reading or Reading(), limits))


def _read_json(request: ReadRequest) -> Iterator[RawRows]:
    names: dict[str, None] = {}
    numbers: list[int] = []
    rows: list[dict[str, Any]] = []
    for number, row in read_rows(request):
        names.update(dict.fromkeys(row))
        numbers.append(number)
        rows.append(row)
        if len(rows) == BLOCK_ROWS:
            yield _json_batch(request, list(names), numbers, rows)
            numbers, rows = [], []
    if rows:
        yield _json_batch(request, list(names), numbers, rows)


def _json_batch(request: ReadRequest, names: list[str], numbers: list[int], rows: list[dict[str, Any]]) -> RawRows:
    roles = request.present(names)
    whole = [rows[0].get(roles[role]) for role in request.needed]
    if len(rows) == 1 and whole and all(isinstance(value, list | dict) and len(value) > 1 for value in whole):
        raise ValueError(
            f"{request.path} is one object of whole columns; write an object a row, as pandas does by "
            "to_json(orient='records', lines=True)"
        )
    columns = {role: [row.get(name) for row in rows] for role, name in roles.items()}
    return RawRows(request.path, np.asarray(numbers), columns, tuple(names))
