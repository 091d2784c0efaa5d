"""Rows of a file by role, and what is asked of a file: its columns, limits, and where bad rows go."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gems_jax.data.options import Reading
from gems_jax.data.quarantine import Quarantine
from gems_jax.data.raw_files import Limits

# Rows of a file that are read however many of them are bad.
HOPELESS_AFTER = 500_000


class Batch(NamedTuple):
    """Some rows of a file: their numbers, from 1, and by role a pyarrow array or a list of Python values.

    `names` are those of all columns that the file was seen to have.
    """

    path: Path
    numbers: np.ndarray
    columns: dict[str, Any]
    names: tuple[str, ...] = ()

    def raw(self, row: int) -> dict[str, Any]:
        """One row as it stood there."""
        return {role: plain_value(column[row]) for role, column in self.columns.items()}


@dataclass(frozen=True)
class Request:
    """What is wanted of a file.

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

    def present(self, found: Sequence[str]) -> dict[str, str]:
        """The roles that have a column among those found.

        Raises:
            ValueError: a needed column is missing or there twice.
        """
        for role in self.needed:
            name = self.roles[role]
            if name not in found:
                raise missing_column(self.path, role, name, found, self.option)
            if list(found).count(name) > 1:
                raise ValueError(f"{self.path} has {list(found).count(name)} columns {name!r}; rename all but one")
        return {role: name for role, name in self.roles.items() if name in found}

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


def missing_column(path: Path, role: str, name: str, found: Sequence[str], option: str) -> ValueError:
    """The error of a column that is not there: what is, what was perhaps meant, and where to name it."""
    near = difflib.get_close_matches(name, found, 1) or difflib.get_close_matches(role, found, 1)
    return ValueError(
        f"{path} has no column {name!r} for {role}; it has {', '.join(map(repr, found[:20]))}"
        + (f". Did you mean {near[0]!r}?" if near else "." if option else "")
        + (f" Name the right one in {option}{_entry(option, role, near)}" if option else "")
    )


def _entry(option: str, role: str, near: Sequence[str]) -> str:
    """What to write where an option has an entry a role."""
    return f" ({role}: {near[0] if near else '...'})" if option.endswith("columns") else ""


def plain_value(value: Any) -> Any:
    """A cell as a Python value; bytes as text, what is no UTF-8 in them escaped."""
    if hasattr(value, "as_py"):
        try:
            value = value.as_py()
        except UnicodeDecodeError:
            value = value.as_buffer().to_pybytes()
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value
