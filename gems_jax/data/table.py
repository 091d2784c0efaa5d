"""Tables of anyone's interactions: `task, user_id, history, target, query, negatives, timestamp` by any names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gems_jax.data.assemble import Source
from gems_jax.data.columns import as_lists, as_text, as_times
from gems_jax.data.examples import UNKNOWN, Examples, Names
from gems_jax.data.named_columns import NamedColumns
from gems_jax.data.options import Steps, TableFiles
from gems_jax.data.quarantine import Quarantine
from gems_jax.data.ragged import Ragged
from gems_jax.data.raw_batch import Batch
from gems_jax.data.raw_files import find_files
from gems_jax.data.read_parts import ReadParts
from gems_jax.data.tables import SPLITS, Item

DEFAULTS = {"max_history": 20}
_SPLIT_NAMES = {name: name for name in SPLITS} | {"validation": "valid", "val": "valid", "dev": "valid", "eval": "test"}


def interaction_files(folder: Path, files: TableFiles) -> list[tuple[str | None, Path]]:
    """Every file of interactions and, where they are given by split, its split."""
    if isinstance(files.interactions, str):
        return [(None, path) for path in find_files(folder, files.interactions)]
    for split in files.interactions:
        if split not in SPLITS:
            raise ValueError(f"interactions are given for {split!r}; the splits are {', '.join(SPLITS)}")
    return [
        (split, path)
        for split in SPLITS
        if split in files.interactions
        for path in find_files(folder, files.interactions[split])
    ]


def read(
    folder: Path, files: TableFiles, steps: Steps, quarantine: Quarantine, parts: ReadParts | None = None
) -> tuple[Source, Steps]:
    """All rows and the catalogue.

    Without a column of splits, or a file each, the last row of each user and task is test and the one before it
    valid; without a column of histories they are made of the user's rows before.

    Args:
        folder: what the files' names are under.
        files: where they are and what their columns are called.
        steps: options; the default are histories of 20 events.
        quarantine: takes bad rows.
        parts: keeps what is read.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is not a folder; data.path must name the one that holds {files.interactions}"
        )
    examples = read_interactions(folder, files, quarantine, parts)
    items = read_items(folder, files, quarantine, examples.names.items.names)
    source = Source("table", str(folder), examples, items, used_only=files.items is None)
    return source, steps.with_defaults(**DEFAULTS)


def read_interactions(
    folder: Path, files: TableFiles, quarantine: Quarantine, parts: ReadParts | None = None
) -> Examples:
    """All rows that can be used; the others are quarantined.

    Args:
        folder: what the files' names are under.
        files: where they are and what their columns are called.
        quarantine: takes the bad rows.
        parts: keeps each file's rows, or has them already.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file or an option is not what it should be, or too many rows are bad.
    """
    columns = NamedColumns("files.columns", files.columns, ("user_id", "target"), files)
    names = Names()
    found: list[Examples] = []
    before = len(quarantine.rows)
    places = interaction_files(folder, files)
    for number, (split, path) in enumerate(places):

        def read_file(path: Path = path, split: str | None = split) -> Examples | None:
            batches = columns.batches(path, quarantine, "row")
            blocks = [encode_batch(batch, names, files, quarantine, split) for batch in batches]
            return Examples.join(_same_columns(blocks)) if blocks else None

        rows = read_file() if parts is None else parts.rows_of(number, len(places), names, quarantine, read_file)
        found += [] if rows is None else [rows]
    columns.check(len(places))
    bad = sum(row["kind"] == "row" for row in quarantine.rows[before:])
    quarantine.check("row", sum(map(len, found)) + bad, f"{folder}: {files.interactions}")
    if not found:
        raise ValueError(f"{folder}: {files.interactions} holds no row of interactions")
    return Examples.join(_same_columns(found))


def encode_batch(
    batch: Batch, names: Names, files: TableFiles, quarantine: Quarantine, split: str | None = None
) -> Examples:
    """The usable rows of a batch as numbers."""
    columns, count = batch.columns, len(batch.numbers)
    problems = _Problems(count)
    users, bad = as_text(columns["user_id"])
    problems.add(bad, "the user is no text")
    problems.add(~bad & np.asarray(users.is_null()), "the user is missing")
    targets = _items(columns["target"], names, problems, "the target")
    problems.add(targets.lengths == 0, "the target is missing")
    history = _items(columns["history"], names, problems, "the history") if "history" in columns else None
    negatives = _items(columns["negatives"], names, problems, "the negatives") if "negatives" in columns else None
    queries = _texts(columns.get("query"), count, problems, "the query is no text")
    time = np.full(count, np.nan)
    if "timestamp" in columns:
        time, absurd = as_times(columns["timestamp"])
        problems.add(absurd, "the timestamp is no time between 1970 and 2100")
        problems.add(np.isnan(time), "the timestamp is missing")
    query = names.queries.encode(queries)
    task = _tasks(columns.get("task"), query, names, files, problems)
    needing = [names.tasks.add(name) for name in files.query_tasks]
    searches = np.isin(task, needing)
    problems.add(searches & (query == UNKNOWN), "the query is empty")
    query = np.where(searches, query, UNKNOWN).astype(np.int32)
    places = _splits(columns.get("split"), split, count, problems)
    history_task = None
    if history is not None and "history_task" in columns:
        history_task = _history_tasks(columns["history_task"], history, names, files, problems)
    problems.send(batch, quarantine)
    names.left_out.add_rows(query, targets, ~problems.none)
    return Examples(
        names, names.users.encode(users), task, query, time, places, targets, _file(batch, names), batch.numbers,
        history, history_task, negatives,
    ).take(problems.none)  # fmt: skip


def read_items(folder: Path, files: TableFiles, quarantine: Quarantine, names: Sequence[str]) -> list[Item]:
    """The catalogue in the file's order; without a file the items that occur.

    Items without a title and second items of the same id are quarantined.
    """
    if files.items is None:
        return [Item(name, name) for name in names]
    columns = NamedColumns("files.item_columns", files.item_columns, ("item_id", "title"), files)
    paths = find_files(folder, files.items)
    items: dict[str, Item] = {}
    for path in paths:
        for batch in columns.batches(path, quarantine, "item"):
            texts = {role: as_text(column)[0].to_pylist() for role, column in batch.columns.items()}
            for row, (item_id, title) in enumerate(zip(texts["item_id"], texts["title"], strict=True)):
                text = texts["text"][row] if "text" in texts else None
                problem = _item_problem(item_id, title, items)
                if problem:
                    quarantine.add("item", f"{path.name}: row {batch.numbers[row]}", problem, batch.raw(row))
                else:
                    items[item_id] = Item(item_id, " ".join(title.split()), " ".join((text or "").split()))
    columns.check(len(paths))
    bad = sum(row["kind"] == "item" for row in quarantine.rows)
    quarantine.check("item", len(items) + bad, f"{folder}: {files.items}")
    if not items:
        raise ValueError(f"{folder}: {files.items} holds no item")
    return list(items.values())


def _item_problem(item_id: str | None, title: str | None, known: Mapping[str, Item]) -> str:
    if not item_id:
        return "it has no id"
    if item_id in known:
        return "there is an item of this id already"
    return "" if title else "it has no title"


class _Problems:
    """The first reason why a row of a batch cannot be used."""

    def __init__(self, count: int):
        self.code = np.zeros(count, np.int16)
        self.reasons = [""]

    def add(self, rows: np.ndarray, reason: str) -> None:
        self.reasons.append(reason)
        self.code[rows & (self.code == 0)] = len(self.reasons) - 1

    @property
    def none(self) -> np.ndarray:
        return self.code == 0

    def send(self, batch: Batch, quarantine: Quarantine) -> None:
        for row in np.flatnonzero(self.code):
            where = f"{batch.path.name}: row {batch.numbers[row]}"
            quarantine.add("row", where, self.reasons[self.code[row]], batch.raw(int(row)))


def _items(column: Any, names: Names, problems: _Problems, what: str) -> Ragged:
    places, texts, bad = as_lists(column)
    problems.add(bad, f"{what} cannot be read as item ids")
    # Items of unreadable cells must not enter the vocabulary.
    places = places.keep(~bad[places.row_of])
    return Ragged(names.items.encode(texts.take(places.values)), places.offsets)


def _texts(column: Any, count: int, problems: _Problems, reason: str) -> Any:
    import pyarrow as pa

    if column is None:
        return pa.nulls(count, pa.string())
    texts, bad = as_text(column)
    problems.add(bad, reason)
    return texts


def _tasks(column: Any, query: np.ndarray, names: Names, files: TableFiles, problems: _Problems) -> np.ndarray:
    """Tasks by their column; without one a row with a query is a search."""
    if column is None:
        return np.where(query == UNKNOWN, names.tasks.get("rec"), names.tasks.get("src")).astype(np.int32)
    texts, bad = as_text(column)
    problems.add(bad | np.asarray(texts.is_null()), "the task is missing")
    return _task_numbers(texts, names, files)


def _task_numbers(texts: Any, names: Names, files: TableFiles) -> np.ndarray:
    distinct = texts.dictionary_encode()
    local = [names.tasks.add(files.tasks.get(name, name)) for name in distinct.dictionary.to_pylist()]
    index = distinct.indices.fill_null(len(local)).to_numpy(zero_copy_only=False)
    return np.asarray([*local, UNKNOWN], np.int32)[index]


def _history_tasks(column: Any, history: Ragged, names: Names, files: TableFiles, problems: _Problems) -> Ragged:
    places, texts, bad = as_lists(column)
    wrong = bad | (places.lengths != history.lengths)
    problems.add(wrong, "the history's tasks are not one for each of its items")
    numbers = _task_numbers(texts, names, files)
    result = np.full(len(history.values), UNKNOWN, np.int32)
    result[~wrong[history.row_of]] = numbers[places.values[~wrong[places.row_of]]]
    return Ragged(result, history.offsets)


def _splits(column: Any, split: str | None, count: int, problems: _Problems) -> np.ndarray:
    if split is not None:
        return np.full(count, SPLITS.index(split), np.int8)
    if column is None:
        return np.full(count, -1, np.int8)
    names = [_SPLIT_NAMES.get((text or "").lower()) for text in as_text(column)[0].to_pylist()]
    problems.add(np.asarray([name is None for name in names]), "the split is none of train, valid and test")
    return np.asarray([SPLITS.index(name) if name else -1 for name in names], np.int8)


def _file(batch: Batch, names: Names) -> np.ndarray:
    return np.full(len(batch.numbers), names.files.add(batch.path.name), np.int32)


def _same_columns(parts: list[Examples]) -> list[Examples]:
    """A column that some files lack is empty there, or for histories an error."""
    for name in ("history", "history_task"):
        if len({getattr(part, name) is None for part in parts}) > 1:
            raise ValueError(f"some files of interactions have a column for {name} and some have not; give it to all")
    if len({part.negatives is None for part in parts}) == 1:
        return parts
    return [part.replace(negatives=part.negatives or Ragged.empty(len(part))) for part in parts]
