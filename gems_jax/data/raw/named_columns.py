"""Columns by the names that the options give them; a name that no file has is an error, not an absent column."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from gems_jax.data.raw.options import Reading
from gems_jax.data.raw.quarantine import Quarantine
from gems_jax.data.raw.raw_files import kind_of
from gems_jax.data.raw.raw_rows import RawRows, column_of, missing_column
from gems_jax.data.raw.raw_table import read_batches

ROLES = ("user_id", "target", "task", "history", "history_task", "query", "negatives", "timestamp", "split")
ITEM_ROLES = ("item_id", "title", "text")
# The options that name columns, and the roles of each.
OPTIONS = {"files.columns": ROLES, "files.item_columns": ITEM_ROLES}


class NamedColumns:
    """Reads files whose columns have names of their own.

    A column that an option names must be in every file. Objects of JSON may leave fields out: there it must be in one
    row of one file.

    Args:
      option: ``files.columns`` or ``files.item_columns``.
      columns: what it says: role to name; empty where a column is not to be read.
      needed: roles whose columns must be there, whatever they are called.
      reading: how the files are read.

    Raises:
      ValueError: the option names a role that is none of its own.
    """

    def __init__(self, option: str, columns: Mapping[str, str], needed: tuple[str, ...], reading: Reading):
        self._option, self._needed, self._reading = option, needed, reading
        self._columns = {role: name for role, name in columns.items() if name}
        self._roles = _names_of_roles(option, columns)
        for role in needed:
            if role not in self._roles:
                raise ValueError(f"{option} says that {role} is not to be read, but it is needed; name its column")
        # Role to the files that lack it, and what these files have.
        self._absent: dict[str, list[Path]] = {}
        self._names_there: list[str] = []

    def batches(self, path: Path, quarantine: Quarantine, kind: str) -> Iterator[RawRows]:
        """The batches of a file, see `read_batches`."""
        named = () if kind_of(path) == "json" else tuple(self._columns)
        needed = tuple(dict.fromkeys((*self._needed, *named)))
        names: dict[str, None] = {}
        for batch in read_batches(path, self._roles, needed, quarantine, kind, self._option, self._reading):
            names.update(dict.fromkeys(batch.names))
            yield batch
        for role, name in self._columns.items():
            if names and column_of(name, names) is None:
                self._absent.setdefault(role, []).append(path)
                self._names_there = list(names)

    def read_from(self, batch: RawRows) -> dict[str, str]:
        """Role to name of the columns that a batch was read from."""
        return {role: self._roles[role] for role in batch.columns}

    def check(self, num_files: int) -> None:
        """Raises where none of the files read has a column that the options name."""
        for role, paths in self._absent.items():
            if len(paths) == num_files:
                raise missing_column(paths[0], role, self._columns[role], self._names_there, self._option)


def _names_of_roles(option: str, columns: Mapping[str, str]) -> dict[str, str]:
    roles: Sequence[str] = OPTIONS[option]
    for role, name in columns.items():
        if role in roles:
            continue
        for other, its_roles in OPTIONS.items():
            if role in its_roles:
                raise ValueError(
                    f"{option} names {role!r}, which is a role of {other}: write {other}: {{{role}: {name}}}"
                )
        raise ValueError(f"{option} names the unknown role {role!r}; the roles are {', '.join(roles)}")
    # An empty name: the role is not to be read, though a column may have its name.
    return {role: name for role in roles if (name := columns.get(role, role))}
