"""Tables of anyone's interactions: ``task, user_id, history, target, query, negatives, timestamp`` by any names."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gems_jax.data.dataset.tables import SPLITS
from gems_jax.data.preparation.oddities import settle_times
from gems_jax.data.preparation.options import PrepareOptions
from gems_jax.data.preparation.read_cache import ReadCache
from gems_jax.data.raw import reasons
from gems_jax.data.raw.catalogue_file import catalogue_files, read_items
from gems_jax.data.raw.examples import UNKNOWN, Examples, Names
from gems_jax.data.raw.ids import KnownIds, same_ids
from gems_jax.data.raw.named_columns import NamedColumns
from gems_jax.data.raw.options import TableFiles
from gems_jax.data.raw.quarantine import Quarantine
from gems_jax.data.raw.ragged import Ragged
from gems_jax.data.raw.raw_files import find_files
from gems_jax.data.raw.raw_rows import RawRows
from gems_jax.data.raw.row_columns import RowColumns
from gems_jax.data.raw.source import Source
from gems_jax.data.raw.unread_columns import look_at_unread
from gems_jax.data.sources.entry import SourceEntry


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


def read(options: PrepareOptions, quarantine: Quarantine, cache: ReadCache) -> Source:
    """All rows and the catalogue.

    Without a column of splits, or a file each, the last row of each user and task is test and the one before it
    valid; without a column of histories they are made of the user's rows before.

    Args:
      options: of these ``files`` count, and the folder that their names are under.
      quarantine: takes bad rows.
      cache: keeps what is read.
    """
    folder, files = options.folder, options.files
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is not a folder; data.path must name the one that holds {files.interactions}"
        )
    # The catalogue first: it tells what an id is.
    items = read_items(folder, files, quarantine)
    catalogue = KnownIds(item.item_id for item in items) if items else None
    examples = read_interactions(folder, files, quarantine, cache, catalogue)
    items = items or read_items(folder, files, quarantine, examples.names.items.names)
    return Source("table", str(folder), examples, items, used_only=files.items is None)


def read_interactions(
    folder: Path,
    files: TableFiles,
    quarantine: Quarantine,
    cache: ReadCache,
    catalogue: KnownIds | None = None,
) -> Examples:
    """All rows that can be used; the others are quarantined.

    Args:
      folder: what the files' names are under.
      files: where they are and what their columns are called.
      quarantine: takes the bad rows.
      cache: keeps each file's rows, or has them already.
      catalogue: tells what an id is.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: a file or an option is not what it should be, or too many rows are bad.
    """
    columns = NamedColumns("files.columns", files.columns, ("user_id", "target"), files)
    names = Names()
    splits_and_paths = interaction_files(folder, files)

    def read_file(file: tuple[str | None, Path]) -> Examples | None:
        split, path = file
        blocks: list[Examples] = []
        for batch in columns.batches(path, quarantine, "row"):
            if not blocks:
                as_given = "history" in batch.columns and (split is not None or "split" in batch.columns)
                ordered = not as_given and "timestamp" not in batch.columns
                look_at_unread(path, batch.names, columns.read_from(batch), files, ordered, quarantine)
            blocks.append(encode_batch(batch, names, files, quarantine, split, catalogue))
        return Examples.join(same_columns(blocks)) if blocks else None

    file_rows = list(cache.rows_of_each(splits_and_paths, names, quarantine, read_file))
    columns.check(len(splits_and_paths))
    quarantine.check_usable("row", sum(map(len, file_rows)), f"{folder}: {files.interactions}")
    if not file_rows:
        raise ValueError(f"{folder}: {files.interactions} holds no row of interactions")
    examples = Examples.join(same_columns(file_rows))
    _remark_tasks(examples, files, quarantine)
    _remark_order(examples, files, quarantine)
    if files.time_format is None:
        examples = settle_times(examples, quarantine)
    return same_ids(examples, catalogue, quarantine)


def encode_batch(
    batch: RawRows,
    names: Names,
    files: TableFiles,
    quarantine: Quarantine,
    split: str | None = None,
    catalogue: KnownIds | None = None,
) -> Examples:
    """The usable rows of a batch as numbers.

    Args:
      batch: of raw rows.
      names: of all rows before; gets those of this one.
      files: what cells mean.
      quarantine: takes the bad rows.
      split: of all rows, where the file says it.
      catalogue: tells what an id is.
    """
    rows = RowColumns(batch, files, quarantine)
    users = rows.texts("user_id", "the user is no text")
    rows.reject(np.asarray(users.is_null()), reasons.NO_USER)
    targets = rows.ids("target", names.items, catalogue)
    rows.reject(targets.lengths == 0, reasons.NO_TARGET)
    # Without a catalogue the targets tell what an id is.
    known = catalogue or KnownIds(names.items.names[item] for item in np.unique(targets.values))
    history = rows.ids("history", names.items, known) if "history" in rows else None
    negatives = rows.ids("negatives", names.items, known) if "negatives" in rows else None
    queries = rows.texts("query", "the query is no text")
    time = rows.times()
    query = names.queries.encode(queries)
    task = rows.tasks(query, names)
    needing = [names.tasks.add(name) for name in files.query_tasks]
    searches = np.isin(task, needing)
    rows.reject(searches & (query == UNKNOWN), reasons.NO_QUERY)
    rows.remark_queries(task, ~searches & (query != UNKNOWN), names)
    query = np.where(searches, query, UNKNOWN).astype(np.int32)
    splits = rows.splits(split)
    history_task = None
    if history is not None and "history_task" in rows:
        history_task = rows.history_tasks(history, names)
    file = np.full(len(rows), names.files.add(batch.path.name), np.int32)
    usable = rows.usable()
    names.left_out.add_rows(query, targets, ~usable)
    return Examples(
        names, names.users.encode(users), task, query, time, splits, targets, file, batch.numbers,
        history, history_task, negatives,
    ).take(usable)  # fmt: skip


def _remark_tasks(examples: Examples, files: TableFiles, quarantine: Quarantine) -> None:
    """Tasks that the options name and no row has: a slip of the pen there goes unnoticed."""
    there = sorted({examples.names.tasks.names[task] for task in np.unique(examples.task)})
    wanted = dict.fromkeys(files.tasks.values(), "files.tasks")
    if tuple(files.query_tasks) != TableFiles.query_tasks:
        wanted |= dict.fromkeys(files.query_tasks, "files.query_tasks")
    for name, option in wanted.items():
        if name not in there:
            quarantine.remark(f"{option} has the task {name!r}, of which there is no row; there are {there}", 1, "")


def _remark_order(examples: Examples, files: TableFiles, quarantine: Quarantine) -> None:
    """Rows that are in order by nothing but their place: what that makes of histories cannot be seen later."""
    if not np.isnan(examples.time).all() or (examples.history is not None and (examples.split != UNKNOWN).all()):
        return
    what = "have no times and are taken to be in the order of time as they stand in the files"
    if "timestamp" in files.columns:
        text = f"{{n}} rows {what}, as files.columns: {{timestamp: ''}} says"
    else:
        text = (
            f"{{n}} rows {what}; if they are not, histories hold what came later, and metrics mean nothing: sort them, "
            "or name a column of times (files.columns: {timestamp: ...})"
        )
    quarantine.remark(text, len(examples), "")


def same_columns(blocks: list[Examples]) -> list[Examples]:
    """A column that some files lack is empty there, or for histories an error."""
    for name in ("history", "history_task"):
        if len({getattr(block, name) is None for block in blocks}) > 1:
            raise ValueError(f"some files of interactions have a column for {name} and some have not; give it to all")
    if len({block.negatives is None for block in blocks}) == 1:
        return blocks
    return [block.replace(negatives=block.negatives or Ragged.empty(len(block))) for block in blocks]


SOURCE = SourceEntry(
    read=read,
    raw_files=lambda options: [
        *(file for _, file in interaction_files(options.folder, options.files)),
        *catalogue_files(options.folder, options.files),
    ],
    defaults={"max_history": 20},
    files=TableFiles(),
)
