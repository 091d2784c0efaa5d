"""What the user's data is: a folder of a known source, or tables whose columns are guessed by their names."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gems_jax.data.preparation.options import PrepareOptions, Preprocessing
from gems_jax.data.raw.catalogue_file import read_items
from gems_jax.data.raw.guess_columns import CATALOGUE, INTERACTIONS, column_names, guess_columns
from gems_jax.data.raw.options import TableFiles
from gems_jax.data.raw.quarantine import Quarantine
from gems_jax.data.raw.raw_files import find_files, kind_of
from gems_jax.data.raw.unread_columns import columns_of_times, first_cells, times_unread
from gems_jax.data.sources import registry

SAMPLE = 500


@dataclasses.dataclass(frozen=True)
class FoundData:
    """A source of data.

    Attributes:
      fields: of the configuration's section ``data``, nested.
      notes: what was guessed, for the user to look at.
      has_queries: whether there are searches; ``None``: not known before the preparation.
      items: number of them; ``None``: not known before the preparation.
      titles: of some items.
    """

    fields: dict[str, Any]
    notes: tuple[str, ...]
    has_queries: bool | None
    items: int | None = None
    titles: tuple[str, ...] = ()


def find_data(data: str, items: str | None, columns: Mapping[str, str]) -> FoundData:
    """Looks at what the user has named.

    Args:
      data: a file of interactions, or a folder: of a known source's raw files, or with one such file and a catalogue.
      items: a catalogue; ``None``: the one beside the interactions, if there is one.
      columns: role to column where a name says nothing, of the interactions and of the catalogue.

    Raises:
      FileNotFoundError: nothing there.
      ValueError: no file, or several, look like interactions; the columns that are needed cannot be told.
    """
    path = Path(data).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"--data {data} does not exist: name a file of interactions, or a folder")
    if path.is_dir() and (source := _known_source(path)) is not None:
        fields = {"name": source, "path": str(path.resolve())}
        return FoundData(fields, (f"data: {path} has the files of the source {source!r}",), None)
    tables = {table: column_names(table) for table in (_tables_in(path) if path.is_dir() else [path])}
    of_items = {role: name for role, name in columns.items() if role in CATALOGUE}
    of_rows = {role: name for role, name in columns.items() if role not in CATALOGUE}
    chosen, roles = _interactions(path, tables, of_rows)
    catalogue = Path(items).expanduser() if items else _catalogue(chosen, tables, of_items)
    return _table(chosen, tables[chosen], roles, catalogue, of_items)


def _tables_in(folder: Path) -> list[Path]:
    """The files of a folder that may be tables; configurations, pictures and the like are none."""
    return [file for file in find_files(folder, "*") if kind_of(file) is not None]


def _known_source(folder: Path) -> str | None:
    """The source all of whose raw files lie in a folder."""
    for name in registry.names():
        entry = registry.entry_of(name)
        if name == "table" or entry.raw_files is None or "category" in entry.takes:
            continue
        options = PrepareOptions(name, str(folder), 0, 1, 1, 0.0, Preprocessing(), entry.files or TableFiles(), None)
        try:
            files = list(entry.raw_files(options))
        except (FileNotFoundError, ValueError):
            continue
        if files and all(file.exists() for file in files):
            return name
    return None


def _interactions(
    path: Path, tables: Mapping[Path, tuple[str, ...]], columns: Mapping[str, str]
) -> tuple[Path, dict[str, str]]:
    """The table of interactions, and the columns of its roles."""
    found = {}
    for table, names in tables.items():
        roles = guess_columns([name for name in names if name not in columns.values()], INTERACTIONS)
        roles = {role: name for role, name in roles.items() if role not in columns} | dict(columns)
        # An empty name: the role has no column, and is not guessed.
        if {"user_id", "target"} <= set(roles) and set(filter(None, columns.values())) <= set(names):
            found[table] = roles
    if len(found) != 1:
        seen = "; ".join(f"{table.name} has {', '.join(names)}" for table, names in tables.items()) or "no table there"
        what = "no table has" if not found else f"{len(found)} tables have"
        raise ValueError(
            f"--data {path}: {what} a column of users and one of items ({seen}): name the file of interactions, and "
            'its columns as --columns \'{"user_id": "...", "target": "...", "timestamp": "...", "query": "..."}\' (the '
            "last two where there are any)"
            + ("; logs that belong together are made one file first" if len(found) > 1 else "")
        )
    return next(iter(found.items()))


def _item_roles(names: tuple[str, ...], named: Mapping[str, str]) -> dict[str, str]:
    """The columns of a catalogue's roles: those that are named, if they are all there, and guesses for the others."""
    if not set(named.values()) <= set(names):
        return {}
    guessed = guess_columns([name for name in names if name not in named.values()], CATALOGUE)
    return {role: name for role, name in guessed.items() if role not in named} | dict(named)


def _catalogue(interactions: Path, tables: Mapping[Path, tuple[str, ...]], named: Mapping[str, str]) -> Path | None:
    """The table beside the interactions that has items with titles."""
    beside = dict(tables)
    if len(tables) == 1:  # a file was named
        beside = {table: column_names(table) for table in _tables_in(interactions.parent)}
    fitting = [
        table
        for table, names in beside.items()
        if table != interactions and {"item_id", "title"} <= set(_item_roles(names, named))
    ]
    if len(fitting) > 1:
        raise ValueError(f"{', '.join(table.name for table in fitting)} have items with titles: name one as --items")
    return fitting[0] if fitting else None


def _order(path: Path, unused: Sequence[str], roles: Mapping[str, str]) -> list[str]:
    """What puts the rows in order, where that is not a column of times.

    Raises:
      ValueError: a column that is not read holds times.
    """
    if roles.get("timestamp"):
        return []
    order = f"{path.name}: no column of times: its rows are taken to be in the order of time"
    if "timestamp" in roles:
        return [f"{order}, as --columns says"]
    needed = {role: roles[role] for role in ("user_id", "target")}
    if times := columns_of_times(first_cells(path, unused, needed=needed)):
        raise ValueError(f"--data {path} " + times_unread(times, '--columns \'{"timestamp": "%s"}\''))
    return [f"{order}; if they are not, histories hold what came later, and metrics mean nothing"]


def _table(
    path: Path, names: tuple[str, ...], roles: dict[str, str], catalogue: Path | None, named: Mapping[str, str]
) -> FoundData:
    notes = [f"{path.name}: {', '.join(f'{role} is {name!r}' for role, name in roles.items() if name)}"]
    unused = [name for name in names if name not in roles.values()]
    if unused:
        notes.append(f"{path.name}: not read: {', '.join(unused)}")
    if not {"history", "split"} <= set(roles):
        notes += _order(path, unused, roles)
    files: dict[str, Any] = {
        "interactions": path.name,
        "items": None,
        "columns": {role: name for role, name in roles.items() if role != name},
    }
    found: list[Any] = []
    if catalogue is None and named:
        raise ValueError(
            f"no catalogue has the columns {', '.join(named.values())} of --columns: name its file as --items"
        )
    if catalogue is None:
        notes.append("no catalogue: items are those that occur, and an item's title is its id; name one as --items")
    else:
        item_names = column_names(catalogue)
        item_roles = _item_roles(item_names, named)
        if not {"item_id", "title"} <= set(item_roles):
            raise ValueError(
                f"{catalogue} has {', '.join(item_names)}: no column is called like an item's id and one "
                'like its title; name them as --columns \'{"item_id": "...", "title": "..."}\''
            )
        files["items"] = str(catalogue.resolve())
        files["item_columns"] = {role: name for role, name in item_roles.items() if role != name}
        notes.append(f"{catalogue.name}: {', '.join(f'{role} is {name!r}' for role, name in item_roles.items())}")
        if unused := [name for name in item_names if name not in item_roles.values()]:
            notes.append(f"{catalogue.name}: not read: {', '.join(unused)}")
        found = read_items(path.parent, TableFiles(**files), Quarantine(max_bad_fraction=1.0))
    files = {name: value for name, value in files.items() if value != {}}
    fields = {"name": "table", "path": str(path.parent.resolve()), "files": files}
    titles = tuple(item.title for item in found[:SAMPLE])
    has_queries = bool(roles.get("query")) or "task" in roles
    return FoundData(fields, tuple(notes), has_queries, len(found) or None, titles)
