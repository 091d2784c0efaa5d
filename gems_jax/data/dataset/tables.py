"""Items and the tables of examples every data source is turned into."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Item:
    """One thing that can be recommended or found.

    Args:
      item_id: the catalogue's own name for it.
      title: what a person reads.
      text: further words for lexical search (a brand, say); not part of the title.
    """

    item_id: str
    title: str
    text: str = ""

    @property
    def search_text(self) -> str:
        """Title and further text in one string, what lexical search indexes."""
        return f"{self.title} {self.text}".strip()


class Row(NamedTuple):
    """One example before it is packed into a `Table`; items are item numbers, positions in the catalogue."""

    user_id: str
    history: Sequence[int]
    target: int
    query: str = ""
    negatives: Sequence[int] | np.ndarray | None = None


@dataclass(frozen=True)
class Table:
    """The examples of one task in one split, as flat arrays.

    Args:
      task: name of the task, ``"rec"`` or ``"src"`` in the sources of this package.
      user_ids: ``R`` user names, one a row.
      history: int32 item numbers of all histories one after the other, oldest first.
      offsets: int64 ``[R + 1]``; the history of row ``r`` is ``history[offsets[r]:offsets[r + 1]]``.
      target: int32 ``[R]``, the item number to be found.
      queries: ``R`` strings, empty where the task has no query.
      negatives: int32 ``[R, C]`` item numbers to rank the target against, or None (training).
      time: float64 ``[R]`` of the targets' interactions (seconds, or positions in the user's sequence), or None.

    Example:
      >>> table = Table.from_rows("rec", [Row("ann", [0, 2], 1), Row("bob", [3], 0)])
      >>> len(table), table.history_of(0).tolist(), table.target.tolist()
      (2, [0, 2], [1, 0])
    """

    task: str
    user_ids: list[str]
    history: np.ndarray
    offsets: np.ndarray
    target: np.ndarray
    queries: list[str]
    negatives: np.ndarray | None = None
    time: np.ndarray | None = None

    def __post_init__(self) -> None:
        rows = len(self.target)
        lengths = {
            "user_ids": len(self.user_ids),
            "queries": len(self.queries),
            "offsets": len(self.offsets) - 1,
        }
        if self.negatives is not None:
            lengths["negatives"] = len(self.negatives)
        if self.time is not None:
            lengths["time"] = len(self.time)
        for name, length in lengths.items():
            if length != rows:
                raise ValueError(f"table {self.task!r}: {name} describes {length} rows, target has {rows}")
        if rows and self.offsets[-1] != len(self.history):
            raise ValueError(
                f"table {self.task!r}: offsets end at {self.offsets[-1]}, history has {len(self.history)} items"
            )

    @classmethod
    def from_rows(cls, task: str, rows: Iterable[Row]) -> Table:
        """Pack rows; either all of them have negatives (equally many) or none has."""
        rows = list(rows)
        with_negatives = [row.negatives for row in rows if row.negatives is not None]
        if with_negatives and (
            len(with_negatives) != len(rows) or len({len(negatives) for negatives in with_negatives}) != 1
        ):
            raise ValueError(f"table {task!r}: every row needs the same number of negatives")
        negatives = np.asarray(with_negatives, np.int32) if with_negatives else None
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum([len(row.history) for row in rows], out=offsets[1:])
        flat = [item for row in rows for item in row.history]
        return cls(
            task=task,
            user_ids=[row.user_id for row in rows],
            history=np.asarray(flat, np.int32),
            offsets=offsets,
            target=np.asarray([row.target for row in rows], np.int32),
            queries=[row.query for row in rows],
            negatives=negatives,
        )

    def __len__(self) -> int:
        return len(self.target)

    def history_of(self, row: int) -> np.ndarray:
        """Item numbers of one row's history, oldest first."""
        return self.history[self.offsets[row] : self.offsets[row + 1]]

    def candidates(self) -> np.ndarray:
        """int32 ``[R, 1 + C]``: the target in column 0, then the negatives."""
        if self.negatives is None:
            raise ValueError(f"table {self.task!r} has no negatives: rank against the whole catalogue instead")
        return np.concatenate([self.target[:, None], self.negatives], axis=1)

    def take(self, rows: np.ndarray | Sequence[int]) -> Table:
        """The table of the given rows, in the given order."""
        index = np.asarray(rows, np.int64)
        lengths = np.diff(self.offsets)[index]
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        return Table(
            task=self.task,
            user_ids=[self.user_ids[row] for row in index],
            history=self.history[np.repeat(self.offsets[:-1][index], lengths) + within],
            offsets=offsets,
            target=self.target[index],
            queries=[self.queries[row] for row in index],
            negatives=None if self.negatives is None else self.negatives[index],
            time=None if self.time is None else self.time[index],
        )


@dataclass(frozen=True)
class Dataset:
    """A catalogue and its tables.

    Args:
      name: which source it came from.
      items: the catalogue; an item number is a position in it.
      tables: ``(split, task)`` to `Table`, splits being train, valid and test.
      card: how it was made and how much there is of it, JSON values only.
      quarantined: rows left out, each with its ``kind``, ``id`` and ``reason``.
    """

    name: str
    items: list[Item]
    tables: dict[tuple[str, str], Table]
    card: dict[str, Any] = field(default_factory=dict)
    quarantined: list[dict[str, str]] = field(default_factory=list)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Task names, in the order of the training tables."""
        return tuple(task for split, task in self.tables if split == "train")

    def table(self, split: str, task: str) -> Table:
        """One table; an unknown or empty one is an error that lists what there is."""
        table = self.tables.get((split, task))
        if table is None:
            known = ", ".join("/".join(key) for key in self.tables)
            raise ValueError(f"dataset {self.name!r} has no table {split}/{task}; it has {known}")
        if not len(table):
            raise ValueError(
                f"dataset {self.name!r}: table {split}/{task} is empty; check the raw data and the quarantine"
            )
        return table

    def in_order(self, item_ids: Sequence[str]) -> Dataset:
        """The same with other item numbers.

        Args:
          item_ids: all ids of the catalogue, in the order of the new numbers.

        Raises:
          ValueError: they are not the catalogue's.

        Example:
          >>> items = [Item("a", "lamp"), Item("b", "chair")]
          >>> shop = Dataset("shop", items, {("train", "rec"): Table.from_rows("rec", [Row("ann", [0], 1)])})
          >>> other = shop.in_order(["b", "a"])
          >>> other.titles(), other.table("train", "rec").target.tolist()
          (['chair', 'lamp'], [0])
        """
        known = {item.item_id: number for number, item in enumerate(self.items)}
        if len(item_ids) != len(self.items) or set(item_ids) != set(known):
            raise ValueError(f"dataset {self.name!r} has {len(known):,} items, not these {len(item_ids):,}")
        old = np.asarray([known[item_id] for item_id in item_ids], np.int64)
        new = np.empty(len(old), np.int32)
        new[old] = np.arange(len(old), dtype=np.int32)
        tables = {
            key: replace(
                table,
                history=new[table.history],
                target=new[table.target],
                negatives=None if table.negatives is None else new[table.negatives],
            )
            for key, table in self.tables.items()
        }
        return replace(self, items=[self.items[number] for number in old.tolist()], tables=tables)

    def item_ids(self) -> list[str]:
        """The catalogue's ids, in the order of item numbers."""
        return [item.item_id for item in self.items]

    def titles(self) -> list[str]:
        """The catalogue's titles, in the order of item numbers."""
        return [item.title for item in self.items]

    def row_counts(self) -> dict[str, dict[str, int]]:
        """Rows by split and task."""
        counts: dict[str, dict[str, int]] = {}
        for (split, task), table in self.tables.items():
            counts.setdefault(split, {})[task] = len(table)
        return counts
