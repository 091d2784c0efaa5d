"""The six tables of the authors' release, pickled dictionaries of rows with the splits they were made with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gems_jax.data.dataset.tables import SPLITS
from gems_jax.data.preparation.options import PrepareOptions
from gems_jax.data.preparation.read_cache import ReadCache
from gems_jax.data.raw.catalogue_file import catalogue_files, read_items
from gems_jax.data.raw.examples import Examples, Names
from gems_jax.data.raw.ids import KnownIds, same_ids
from gems_jax.data.raw.options import TableFiles
from gems_jax.data.raw.plain_pickle import load_plain
from gems_jax.data.raw.quarantine import Quarantine
from gems_jax.data.raw.raw_rows import RawRows
from gems_jax.data.raw.source import Source
from gems_jax.data.sources.entry import SourceEntry
from gems_jax.data.sources.table import encode_batch

TASKS = ("rec", "src")
FETCH = (
    "make them with the scripts of the authors' release (https://github.com/Polaris-JZ/GEMS, data/), and name the "
    "folder they write, seq_data or bsr_data, as data.path"
)
COLUMNS = {
    "user_id": "user_id",
    "target": "target_item",
    "history": "item_list",
    "history_task": "his_task",
    "query": "query",
    "negatives": "neg_note_idx",
    "timestamp": "timestamp",
}
_BLOCK = 65_536


def raw_files(folder: Path) -> dict[tuple[str, str], Path]:
    """The six files by split and task.

    Raises:
      FileNotFoundError: one is missing; says which and how to get it.
    """
    files = {(split, task): folder / f"{split}_{task}.pkl" for split in SPLITS for task in TASKS}
    missing = [path.name for path in files.values() if not path.is_file()]
    if missing:
        raise FileNotFoundError(f"{folder} has no {', '.join(missing)}; {FETCH}")
    return files


def read(options: PrepareOptions, quarantine: Quarantine, cache: ReadCache) -> Source:
    """All rows with their splits, and a catalogue from ``files.items``, or of ids alone.

    Args:
      options: of these the folder of the six files counts, ``preprocessing.repeats``, and of ``files`` the catalogue.
      quarantine: takes bad rows.
      cache: none is kept.
    """
    folder, files = options.folder, options.files
    names = Names()
    blocks, total = [], 0
    for (split, task), path in raw_files(folder).items():
        for batch in _batches(path, task, options.preprocessing.repeats):
            total += len(batch.numbers)
            blocks.append(encode_batch(batch, names, TableFiles(tasks={"search": "src"}), quarantine, split))
    quarantine.check("row", total, folder)
    if not total:
        raise ValueError(f"{folder}: the six tables have no rows")
    # Only tables for test are sure to have negatives.
    blocks = [block.replace(negatives=block.negatives or block.targets.first(0)) for block in blocks]
    if any(block.history_task is None for block in blocks):
        blocks = [block.replace(history_task=None) for block in blocks]
    items = read_items(folder, files, quarantine)
    examples = same_ids(Examples.join(blocks), KnownIds(item.item_id for item in items) if items else None, quarantine)
    items = items or read_items(folder, files, quarantine, examples.names.items.names)
    return Source("released", str(folder), examples, items)


def _batches(path: Path, task: str, timed: bool) -> Iterator[RawRows]:
    """Rows as columns; times only where they are needed, because rows without one are bad then."""
    rows = load_plain(path)
    if not isinstance(rows, dict) or not all(isinstance(row, dict) for row in rows.values()):
        raise ValueError(
            f"{path} must hold a dictionary of rows, each a dictionary, as DataFrame.to_dict('index') gives"
        )
    values = list(rows.values())
    for role in ("user_id", "target", "history"):
        if values and COLUMNS[role] not in values[0]:
            raise ValueError(f"{path}: rows have no {COLUMNS[role]!r}, they have {', '.join(map(repr, values[0]))}")
    for start in range(0, len(values), _BLOCK):
        block = values[start : start + _BLOCK]
        columns: dict[str, Any] = {
            role: [row.get(name) for row in block]
            for role, name in COLUMNS.items()
            if name in block[0] and (timed or role != "timestamp")
        }
        columns["task"] = [task] * len(block)
        yield RawRows(path, np.arange(start + 1, start + 1 + len(block)), columns)


SOURCE = SourceEntry(
    read=read,
    raw_files=lambda options: [*raw_files(options.folder).values(), *catalogue_files(options.folder, options.files)],
    defaults={"max_history": 20},
    files=TableFiles(items=None),  # the tables come without a catalogue
)
