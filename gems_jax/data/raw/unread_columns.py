"""Columns that no role takes: times among them would have put the rows in order, and a query would make searches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gems_jax.data.raw.blank import MISSING_WORDS, trimmed
from gems_jax.data.raw.guess_columns import INTERACTIONS, guess_columns
from gems_jax.data.raw.options import Reading, TableFiles
from gems_jax.data.raw.quarantine import Quarantine
from gems_jax.data.raw.raw_rows import plain_value
from gems_jax.data.raw.raw_table import read_batches
from gems_jax.data.raw.times import of_dates, read_times

# Cells that are looked at, and the share of them that must be times.
_LOOKED_AT, _MOST = 1000, 0.9
# Numbers between 1990 and 2040 may be times; others are prices, counts or ids.
_FIRST, _LAST = 631_152_000.0, 2_208_988_800.0
_OPTION = "files.columns: {timestamp: '%s'}"


def first_cells(
    path: Path, names: Sequence[str], reading: Reading | None = None, needed: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The cells of some columns in the first block of a file, by the columns' names.

    Args:
      path: of the file.
      names: of columns that are there.
      reading: how the file is read.
      needed: role to name of columns that must be there, by which the mark between columns is told.
    """
    roles = dict(needed or {}) | {f"column {name}": name for name in names}
    for batch in read_batches(path, roles, tuple(needed or ()), Quarantine(max_bad_fraction=1.0), reading=reading):
        return {name: cells for name in names if (cells := batch.columns.get(f"column {name}")) is not None}
    return {}


def columns_of_times(cells: Mapping[str, Any], missing: tuple[str, ...] = MISSING_WORDS) -> dict[str, Any]:
    """The columns that hold times, those that are called so first, with the first time of each.

    Dates, and numbers that are times from 1990 to 2040; a column that is called like one of times may have any numbers.
    A column with one and the same time puts nothing in order and does not count.

    Args:
      cells: of each column, pyarrow array or list of Python values.
      missing: words for nothing.

    Example:
      >>> columns_of_times({"price": [12.5, 9.9], "day": ["2024-05-01", "2024-05-02"], "ts": [1, 2]})
      {'ts': 1, 'day': '2024-05-01'}
    """
    called = {name for name in cells if "timestamp" in guess_columns([name], INTERACTIONS)}
    found = {name: column[:_LOOKED_AT] for name, column in cells.items() if len(column)}
    found = {name: column for name, column in found.items() if _are_times(column, missing, name in called)}
    first = {name: next((value for cell in column if (value := plain_value(cell)) is not None), None)
             for name, column in found.items()}  # fmt: skip
    return {name: first[name] for name in sorted(first, key=lambda name: name not in called)}


def _are_times(column: Any, missing: tuple[str, ...], any_numbers: bool) -> bool:
    times = read_times(column, None, missing)
    filled = ~np.isnan(times.seconds) | times.bad
    good = filled & (~times.bad | times.unclear)
    if good.sum() < max(2, _MOST * filled.sum()):
        return False
    seconds = times.seconds[filled & ~times.bad]
    if not len(seconds):  # dates that can be read in two ways
        return True
    if len(np.unique(seconds)) < 2 and not times.unclear.any():
        return False
    dates = of_dates(seconds)
    seconds = seconds if dates is None else dates
    return any_numbers or bool(seconds.min() >= _FIRST and seconds.max() <= _LAST)


def look_at_unread(
    path: Path, names: Iterable[str], read: Mapping[str, str], files: TableFiles, ordered: bool, quarantine: Quarantine
) -> None:
    """Says which columns of a file are not read.

    Args:
      path: of the file.
      names: of its columns.
      read: role to column, of the columns that are read.
      files: how it is read, and which roles are to have no column.
      ordered: whether the order of rows follows from nothing that is read.
      quarantine: gets remarks.

    Raises:
      ValueError: rows are to be put in order without times, and a column that is not read holds times.
    """
    taken = {trimmed(name) for name in read.values()}
    unread = [name for name in names if trimmed(name) not in taken]
    if ordered and unread and "timestamp" not in files.columns:
        needed = {role: read[role] for role in ("user_id", "target")}
        times = columns_of_times(first_cells(path, unread, files, needed), tuple(files.missing))
        if times:
            raise ValueError(f"{path} {times_unread(times, _OPTION)}")
    if unread:
        quarantine.remark(f"columns that are not read: {', '.join(unread)}; files that have them: {{n}}", 1, "")
    if "query" in read or "query" in files.columns:
        return
    if (query := guess_columns(unread, {"query": INTERACTIONS["query"]}).get("query")) is not None:
        text = (
            f"the column {query!r} is called like what people typed and is not read, so there are no searches by it: "
            f"files.columns: {{query: {query}}} reads it, {{query: ''}} says that it is none; files that have it: {{n}}"
        )
        quarantine.remark(text, 1, "")


def times_unread(times: Mapping[str, Any], option: str) -> str:
    """The words of an error: columns hold times and none is read.

    Args:
      times: of `columns_of_times`.
      option: how a column of times is named, with ``%s`` for the name, which is empty where there is none.

    Example:
      >>> times_unread({"day": "2024-05-01"}, "timestamp: '%s'").partition(" (")[0]
      "has no column that is read as times, and 'day' looks like times"
    """
    looks = "looks" if len(times) == 1 else "look"
    name, first = next(iter(times.items()))
    return (
        f"has no column that is read as times, and {', '.join(map(repr, times))} {looks} like times (the first: "
        f"{first}): in the order of the file's lines histories may hold what came later. Name the column that says "
        f"when a row happened ({option % name}); if there is none, and rows do stand in the order of time, say so "
        f"({option % ''})"
    )
