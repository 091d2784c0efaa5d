"""MiniOneRec (arXiv 2510.24431): its tables of train, valid and test, row by row as they are published."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from gems_jax.data.dataset.tables import SPLITS
from gems_jax.data.preparation.options import PrepareOptions
from gems_jax.data.preparation.read_cache import ReadCache
from gems_jax.data.raw.examples import Examples, Names
from gems_jax.data.raw.ids import KnownIds, same_ids
from gems_jax.data.raw.item_objects import find_catalogue, read_item_objects
from gems_jax.data.raw.options import TableFiles
from gems_jax.data.raw.quarantine import Quarantine
from gems_jax.data.raw.raw_table import read_batches
from gems_jax.data.raw.source import Source
from gems_jax.data.sources.entry import SourceEntry
from gems_jax.data.sources.table import encode_batch

FETCH = (
    "fetch data/Amazon of https://github.com/AkaliKong/MiniOneRec by hand: the folders train, valid and test with a "
    "CSV file of the category each, and index with <Category>.item.json; name the folder that holds them as data.path"
)
COLUMNS = {"user_id": "user_id", "target": "item_id", "history": "history_item_id"}


class Files(NamedTuple):
    """The files of a category: a table of each split, and the catalogue."""

    tables: dict[str, Path]
    items: Path


def raw_files(folder: Path, category: str | None) -> Files:
    """The files of a category.

    Raises:
      FileNotFoundError: one is missing; says which and how to get it.
      ValueError: there are several categories and none is named, or several tables of one split.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; {FETCH}")
    name, items = find_catalogue([folder, folder / "index"], category, FETCH)
    tables = {}
    for split in SPLITS:
        # The rest of a table's name is the span of time and the core it was cut to.
        found = [path for path in sorted((folder / split).glob(f"{name}*.csv")) if path.stem[len(name) :][:1] in "_."]
        if not found:
            raise FileNotFoundError(f"{folder / split} holds no {name}_*.csv; {FETCH}")
        if len(found) > 1:
            raise ValueError(
                f"{folder / split} holds {', '.join(path.name for path in found)}; leave one of them there"
            )
        tables[split] = found[0]
    return Files(tables, items)


def read(options: PrepareOptions, quarantine: Quarantine, cache: ReadCache) -> Source:
    """All rows with their splits and histories, and the whole catalogue; there are no searches.

    Rows have no times; the files are cut by time and in order, so a row's place in train, valid, test stands for it.

    Args:
      options: of these the folder counts and, where it holds several categories, which.
      quarantine: takes bad rows.
      cache: keeps each file's rows, or has them already.
    """
    files = raw_files(options.folder, options.category)
    items = read_item_objects(files.items, quarantine)
    catalogue = KnownIds(item.item_id for item in items)
    names = Names()

    def read_file(file: tuple[str, Path]) -> Examples | None:
        split, path = file
        batches = read_batches(path, COLUMNS, tuple(COLUMNS), quarantine)
        rows = [encode_batch(batch, names, TableFiles(), quarantine, split, catalogue) for batch in batches]
        return Examples.join(rows) if rows else None

    blocks = list(cache.rows_of_each([*files.tables.items()], names, quarantine, read_file))
    total = sum(map(len, blocks))
    quarantine.check_usable("row", total, options.folder)
    if not total:
        raise ValueError(f"{options.folder} holds no row; {FETCH}")
    examples = same_ids(Examples.join(blocks), catalogue, quarantine)
    examples = examples.replace(time=np.arange(len(examples), dtype=np.float64))
    _remark_gaps(examples, quarantine)
    return Source("minionerec", str(options.folder), examples, items, used_only=False, as_published=True)


def _remark_gaps(examples: Examples, quarantine: Quarantine) -> None:
    """Counts rows whose history does not end with the target of the user's row before: their order is in doubt."""
    assert examples.history is not None
    order = np.argsort(examples.user, kind="stable")
    history = examples.history.take(order)
    target = examples.targets.first(1).take(order).values
    last = np.full(len(order), -1, np.int64)
    some = history.lengths > 0
    last[some] = history.values[history.offsets[1:][some] - 1]
    again = np.flatnonzero(np.diff(examples.user[order]) == 0) + 1
    gaps = again[last[again] != target[again - 1]]
    if len(gaps):
        quarantine.remark(
            "{n} histories do not end with the target of the user's row before; if the files are not in the order of "
            "time, training may see what valid and test hold out",
            len(gaps),
            examples.where(int(order[gaps[0]])),
        )


SOURCE = SourceEntry(
    read=read,
    raw_files=lambda options: [
        *(files := raw_files(options.folder, options.category)).tables.values(),
        files.items,
    ],
    takes=("category",),
)
