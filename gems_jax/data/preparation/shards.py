"""Rows finished user by user in shards of bounded size, each on disk as soon as it is done."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gems_jax.data.dataset.array_records import write_tables
from gems_jax.data.dataset.tables import SPLITS, Dataset
from gems_jax.data.preparation.assemble import Ready, finish
from gems_jax.data.preparation.item_sets import ItemSets
from gems_jax.data.preparation.leaks import check_events
from gems_jax.data.preparation.resume import Pace
from gems_jax.staging import fresh_folder

# Rows of a shard: what is in memory beside the columns of all rows.
ROWS = 500_000
STATS, SETS, TABLES = "shard.json", "item_sets.npz", "tables"


@dataclass
class Finished:
    """The results of the shards done so far.

    Args:
      sets: items of the splits.
      rows: of each table.
      users: that have a row.
      removed: what was left out of histories and training, by reason.
      folders: of the tables of the shards that have rows.
    """

    sets: ItemSets
    rows: Counter[tuple[str, str]] = field(default_factory=Counter)
    users: int = 0
    removed: Counter[str] = field(default_factory=Counter)
    folders: list[Path] = field(default_factory=list)

    def counts(self) -> dict[str, dict[str, int]]:
        """Rows by split and task."""
        result: dict[str, dict[str, int]] = {}
        for (split, task), count in self.rows.items():
            result.setdefault(split, {})[task] = count
        return result

    def step(self) -> dict[str, Any]:
        """For the card: what is left of the rows, and what was left out."""
        rows: Counter[str] = Counter()
        for (_, task), count in self.rows.items():
            rows[task] += count
        return {
            "step": "histories",
            "rows": {task: count for task, count in rows.items() if count},
            "users": self.users,
            "items": self.sets.num_targets(),
            **{reason: count for reason, count in self.removed.items() if count},
        }

    def add(self, folder: Path) -> None:
        """A shard on disk."""
        stats = json.loads((folder / STATS).read_text(encoding="utf-8"))
        self.rows.update({(split, task): count for split, task, count in stats["rows"]})
        self.users += stats["users"]
        self.removed.update(stats["removed"])
        self.sets.merge(ItemSets.load(folder / SETS))
        if any(count for _, _, count in stats["rows"]):
            self.folders.append(folder / TABLES)


def user_shards(user: np.ndarray, rows: int) -> Iterator[np.ndarray]:
    """The rows of some users after the other, as indices in order: whole users, about ``rows`` rows a shard.

    Args:
      user: int ``[R]``.
      rows: of a shard, at least 1; a shard has fewer than that more only if a user has.

    Example:
      >>> [shard.tolist() for shard in user_shards(np.array([1, 0, 2, 1, 0]), rows=3)]
      [[0, 1, 3, 4], [2]]
    """
    order = np.argsort(user, kind="stable").astype(np.int32 if len(user) < 2**31 else np.int64)
    ends = np.cumsum(np.bincount(user))
    start = 0
    while start < len(order):
        # The first user at which the shard is full.
        end = int(ends[min(int(np.searchsorted(ends, start + rows)), len(ends) - 1)])
        yield np.sort(order[start:end])
        start = end


def finish_shards(ready: Ready, folder: Path, repeats: bool, cold_items: bool, say: Callable[[str], None]) -> Finished:
    """Finishes and checks all rows, shard by shard; shards that are in the folder already are not made again.

    Args:
      ready: all rows.
      folder: gets a folder a shard.
      repeats: as of `check_leaks`.
      cold_items: as of `check_leaks`.
      say: takes a line after each shard, where there are several.

    Raises:
      ValueError: held-out events can be seen in training, or negatives are positives.
    """
    folder.mkdir(exist_ok=True)
    finished = Finished(ItemSets(len(ready.items), with_users=not cold_items))
    finished.rows.update({(split, task): 0 for split in SPLITS for task in ready.tasks})
    total, done = len(ready.examples), 0
    pace: Pace | None = None
    for number, rows in enumerate(user_shards(ready.examples.user, ROWS)):
        shard_folder = folder / f"{number:05d}"
        there = (shard_folder / STATS).is_file()
        if not there:
            pace = pace or Pace(total, done)
            _write_shard(ready, rows, shard_folder, dict(finished.rows), repeats, cold_items)
        finished.add(shard_folder)
        done += len(rows)
        if len(rows) < total and pace is not None:
            say(f"data: shard {number + 1}, {done:,} of {total:,} rows done, {pace.of(done)}")
        elif len(rows) < total:
            say(f"data: shard {number + 1} is there already")
    return finished


def _write_shard(
    ready: Ready,
    rows: np.ndarray,
    shard_folder: Path,
    before: dict[tuple[str, str], int],
    repeats: bool,
    cold_items: bool,
) -> None:
    shard = finish(ready, rows)
    dataset = Dataset(ready.name, ready.items, shard.tables)
    if any(map(len, shard.tables.values())):
        check_events(dataset, repeats, before, ready.own_split)
    sets = ItemSets(len(ready.items), with_users=not cold_items)
    sets.add(shard.tables)
    temporary = fresh_folder(shard_folder)
    sets.save(temporary / SETS)
    if any(map(len, shard.tables.values())):
        write_tables(ready.name, shard.tables, temporary / TABLES)
    stats: dict[str, Any] = {
        "rows": [[*key, len(table)] for key, table in shard.tables.items()],
        "users": shard.users,
        "removed": shard.removed,
    }
    (temporary / STATS).write_text(json.dumps(stats), encoding="utf-8")
    os.rename(temporary, shard_folder)
