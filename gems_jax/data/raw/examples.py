"""Rows of any source on their way into tables, column by column: numbers for users, items, queries and tasks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gems_jax.data.dataset.tables import SPLITS
from gems_jax.data.raw.ragged import Ragged

UNKNOWN = -1


class Vocabulary:
    """Names to numbers in the order of their first appearance; ``names`` has them by number.

    Example:
      >>> import pyarrow as pa
      >>> users = Vocabulary()
      >>> users.encode(pa.array(["ann", "bob", None, "ann"])).tolist(), users.names
      ([0, 1, -1, 0], ['ann', 'bob'])
    """

    def __init__(self, names: Sequence[str] = ()):
        self.names: list[str] = []
        self._numbers: dict[str, int] = {}
        for name in names:
            self.add(name)

    def encode(self, texts: Any) -> np.ndarray:
        """int32 numbers of a pyarrow string array, -1 for null; new names are added."""
        import pyarrow.compute as pc

        distinct = texts.dictionary_encode()
        local = [self.add(name) for name in distinct.dictionary.to_pylist()]
        index = pc.fill_null(distinct.indices, len(local)).to_numpy(zero_copy_only=False)
        return np.asarray([*local, UNKNOWN], np.int32)[index]

    def add(self, name: str) -> int:
        """A name's number."""
        number = self._numbers.setdefault(name, len(self.names))
        if number == len(self.names):
            self.names.append(name)
        return number

    def get(self, name: str) -> int:
        """A name's number, -1 where it has none."""
        return self._numbers.get(name, UNKNOWN)

    def __len__(self) -> int:
        return len(self._numbers)


class LeftOut:
    """Searches of rows that cannot be used: ``names`` has pairs of a query's and an item's number.

    Such a row tells of its query all the same: the query led to the item.
    """

    def __init__(self) -> None:
        self.names: list[tuple[int, int]] = []

    def add(self, pair: Sequence[int]) -> None:
        """A query's and an item's number."""
        query, item = pair
        self.names.append((query, item))

    def add_rows(self, query: np.ndarray, targets: Ragged, rows: np.ndarray) -> None:
        """The targets of some rows that have a query.

        Args:
          query: int ``[R]``, -1 without one.
          targets: item numbers of all rows.
          rows: bool ``[R]``.
        """
        wanted = targets.take(rows & (query >= 0))
        of_rows = query[rows & (query >= 0)]
        self.names += zip(of_rows[wanted.row_of].tolist(), wanted.values.tolist(), strict=True)

    def with_items(self, new_numbers: np.ndarray) -> LeftOut:
        """With other item numbers: ``new_numbers`` has the new one of each old one."""
        result = LeftOut()
        result.names = [(query, int(new_numbers[item])) for query, item in self.names]
        return result

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Names:
    """The vocabularies of one source."""

    users: Vocabulary = field(default_factory=Vocabulary)
    items: Vocabulary = field(default_factory=Vocabulary)
    queries: Vocabulary = field(default_factory=Vocabulary)
    # These two come first, in this order, in every dataset.
    tasks: Vocabulary = field(default_factory=lambda: Vocabulary(("rec", "src")))
    files: Vocabulary = field(default_factory=Vocabulary)
    left_out: LeftOut = field(default_factory=LeftOut)

    def replace(self, **changes: Any) -> Names:
        """With some vocabularies changed."""
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True)
class Examples:
    """``R`` rows: a user, doing a task at a time, interacted with one or several items after a history.

    Args:
      names: what the numbers stand for.
      user: int32 ``[R]``.
      task: int32 ``[R]``.
      query: int32 ``[R]``, -1 without one.
      time: float64 ``[R]``: seconds, or positions in the order of events; nan where that is not known.
      split: int8 ``[R]``, indices into ``("train", "valid", "test")``; -1 where rows are not split yet.
      targets: items interacted with, at least one a row.
      history: items before, oldest first; None where it is to be made from the rows before.
      history_task: tasks of the history's events, aligned with it.
      negatives: items to rank against, where the source brings some.
      shown: items shown with the targets and not clicked; they only count as events in ``core``.
      file: int32 ``[R]``, where a row came from.
      number: int64 ``[R]``, its number there.
    """

    names: Names
    user: np.ndarray
    task: np.ndarray
    query: np.ndarray
    time: np.ndarray
    split: np.ndarray
    targets: Ragged
    file: np.ndarray
    number: np.ndarray
    history: Ragged | None = None
    history_task: Ragged | None = None
    negatives: Ragged | None = None
    shown: Ragged | None = None

    def __len__(self) -> int:
        return len(self.user)

    def take(self, rows: np.ndarray) -> Examples:
        """The given rows, in the given order (or where a mask is true)."""
        index = np.flatnonzero(rows) if rows.dtype == bool else rows
        return self.replace(**{name: _take(value, index) for name, value in vars(self).items() if name != "names"})

    def replace(self, **changes: Any) -> Examples:
        """With some columns changed."""
        return dataclasses.replace(self, **changes)

    @classmethod
    def join(cls, parts: Sequence[Examples]) -> Examples:
        """The rows of all parts, which share their names and have the same columns."""
        columns = [name for name in vars(parts[0]) if name != "names"]
        return cls(parts[0].names, **{name: _join([getattr(part, name) for part in parts]) for name in columns})

    def where(self, row: int) -> str:
        """File and number of a row."""
        return f"{self.names.files.names[self.file[row]]}: row {self.number[row]}"

    def describe(self, row: int) -> dict[str, Any]:
        """A row in words, as far as it was read."""
        names = self.names
        items = names.items.names
        result: dict[str, Any] = {
            "user_id": names.users.names[self.user[row]],
            "task": names.tasks.names[self.task[row]],
            "target": [items[item] for item in self.targets[row]],
        }
        if self.split[row] >= 0:
            result["split"] = SPLITS[self.split[row]]
        if self.query[row] >= 0:
            result["query"] = names.queries.names[self.query[row]]
        if not np.isnan(self.time[row]):
            result["timestamp"] = float(self.time[row])
        if self.history is not None:
            result["history"] = [items[item] for item in self.history[row]]
        return result


def _take(value: Any, index: np.ndarray) -> Any:
    if value is None:
        return None
    return value.take(index) if isinstance(value, Ragged) else value[index]


def _join(values: list[Any]) -> Any:
    if values[0] is None:
        return None
    return Ragged.join(values) if isinstance(values[0], Ragged) else np.concatenate(values)
