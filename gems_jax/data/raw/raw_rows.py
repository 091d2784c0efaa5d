"""Rows of a file by role, and what is asked of a file: its columns, limits, and where bad rows go."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gems_jax.data.raw.blank import trimmed
from gems_jax.data.raw.options import Reading
from gems_jax.data.raw.quarantine import Quarantine, shorten
from gems_jax.data.raw.raw_files import Limits, kind_of

# Rows of a file that are read however many of them are bad.
HOPELESS_AFTER = 500_000


class RawRows(NamedTuple):
    """Some rows of a file: their numbers, from 1, and by role a pyarrow array or a list of Python values.

    ``names`` are those of all columns that the file was seen to have.
    """

    path: Path
    numbers: np.ndarray
    columns: dict[str, Any]
    names: tuple[str, ...] = ()

    def raw(self, row: int) -> dict[str, Any]:
        """One row as it stood there."""
        return {role: plain_value(column[row]) for role, column in self.columns.items()}


@dataclass(frozen=True)
class ReadRequest:
    """A request to read a file.

    Args:
      path: the file.
      roles: role to the column's name.
      needed: roles whose columns must be there.
      option: that says what columns are called, for messages; empty where there is none.
      quarantine: takes rows that cannot be read.
      kind: of row, in the quarantine.
      reading: how the file is read.
      limits: of its sizes.
    """

    path: Path
    roles: dict[str, str]
    needed: tuple[str, ...]
    option: str
    quarantine: Quarantine
    kind: str
    reading: Reading
    limits: Limits

    def present(self, names: Sequence[str]) -> dict[str, str]:
        """The roles' columns among those of a file, by their names there.

        Raises:
          ValueError: a needed column is missing, or one that is read is there twice.
        """
        columns = {role: there for role, name in self.roles.items() if (there := column_of(name, names)) is not None}
        for role in self.needed:
            if role not in columns:
                lost = [other for other in self.needed if other not in columns]
                raise missing_column(self.path, role, self.roles[role], names, self.option, lost == [*self.needed])
        for role in columns:
            same = _columns_of(self.roles[role], names)
            if len(same) > 1:
                raise ValueError(f"{self.path} has {len(same)} columns {self.roles[role]!r}; rename all but one")
        return columns

    def leave_out(self, number: int, reason: str, detail: Any) -> None:
        """Sends a row to the quarantine."""
        self.quarantine.add(self.kind, f"{self.path.name}: row {number}", reason, detail)
        # Bad rows are kept in memory: a file of nothing else is not read to its end.
        rows, half = self.quarantine.rows, number // 2 + 1
        hopeless = number >= HOPELESS_AFTER and self.quarantine.max_bad_fraction < 0.5 and len(rows) >= half
        if hopeless and rows[-half]["id"].startswith(f"{self.path.name}: row "):
            raise ValueError(
                f"{self.path}: more than half of the first {number:,} rows cannot be used, the last because {reason}; "
                "is it a file of another kind?"
            )


def column_of(name: str, names: Collection[str]) -> str | None:
    """The column of a name among those of a file: as it is written or, where none is, without the blanks around it.

    Example:
      >>> column_of("query", ["user", " query "]), column_of("query", ["Query"])
      (' query ', None)
    """
    return next(iter(_columns_of(name, names)), None)


def _columns_of(name: str, names: Collection[str]) -> list[str]:
    same = [other for other in names if other == name]
    return same or [other for other in names if trimmed(other) == trimmed(name)]


def missing_column(
    path: Path, role: str, name: str, names: Sequence[str], option: str, all_missing: bool = False
) -> ValueError:
    """The error of a column that is not there: what is, what was perhaps meant, and where to name it.

    Args:
      path: of the file.
      role: that needs it.
      name: what it should be called.
      names: names of the columns that are there.
      option: that names columns; empty where there is none.
      all_missing: whether no needed column is there, so that the names may be no names at all.
    """
    near = _near(name, names) or _near(role, names)
    shown = ", ".join(shorten(repr(text), 80) for text in names[:20]) + (", ..." if len(names) > 20 else "")
    hint = ""
    if all_missing and kind_of(path) == "csv":
        hint = "The first line holds the columns' names: where it is a row already, write a line of names above it"
        if len(names) == 1 and option.startswith("files."):
            hint += "; where all names stand in one column here, files.delimiter says which character is between them"
    elif all_missing and kind_of(path) == "json":
        hint = "Each row is an object whose keys are the columns' names"
    return ValueError(
        f"{path} has no column {name!r} for {role}; it has {shown}"
        + (f". Did you mean {near!r}?" if near else "." if option or hint else "")
        + (f" Name the right one in {option}{_entry(option, role, near)}" if option else "")
        + (f". {hint}" if hint else "")
    )


def _near(name: str, names: Sequence[str]) -> str | None:
    """The name that was perhaps meant."""
    folded = {text.casefold(): text for text in names}
    near = difflib.get_close_matches(name.casefold(), folded, 1)
    return folded[near[0]] if near and len(near[0]) < 80 else None


def _entry(option: str, role: str, near: str | None) -> str:
    """The words to write where an option has an entry a role, as YAML reads them."""
    if not option.endswith("columns"):
        return ""
    plain = near is None or re.fullmatch(r"[^\W\d][\w.-]*", near)
    return f" ({role}: {(near or '...') if plain else json.dumps(near, ensure_ascii=False)})"


def plain_value(value: Any) -> Any:
    """A cell as a Python value; bytes as text, what is no UTF-8 in them escaped."""
    if hasattr(value, "as_py"):
        try:
            value = value.as_py()
        except UnicodeDecodeError:
            value = value.as_buffer().to_pybytes()
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value
