"""Puts together all that a dataset knows of one user, from rows that each tell a part."""

from __future__ import annotations

import difflib
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from gems_jax.data.dataset.tables import SPLITS, Dataset, Table

# Users whose names are compared with one that is not there: of more it would take seconds.
_COMPARED = 20_000
_NO_TIME = float("nan")


class _Event(NamedTuple):
    """A row of a table: a target interacted with after a history."""

    task: str
    split: int
    time: float
    history: tuple[int, ...]
    target: int


class _Rows:
    """The rows of a table as events; views of its arrays give numbers of Python, several times as fast as arrays do."""

    def __init__(self, task: str, split: int, table: Table):
        self._task, self._split = task, split
        self._history, self._offsets = table.history.data, table.offsets.data
        self._target = table.target.data
        self._time = None if table.time is None else table.time.data

    def event(self, row: int) -> _Event:
        history = tuple(self._history[self._offsets[row] : self._offsets[row + 1]])
        time = _NO_TIME if self._time is None else self._time[row]
        return _Event(self._task, self._split, time, history, self._target[row])


class UserHistories:
    """What a dataset knows of its users; where each has rows is looked up once.

    Args:
      dataset: with tables of any split.

    Attributes:
      users: number of users.
      longest: most events that any of them can have.

    Example:
      >>> from gems_jax.data.dataset.tables import Row, Table
      >>> table = Table.from_rows("rec", [Row("ann", [3], 1), Row("ann", [1], 2)])
      >>> UserHistories(Dataset("shop", [], {("train", "rec"): table})).of("ann")
      [3, 1, 2]
    """

    def __init__(self, dataset: Dataset):
        self._dataset = dataset
        self._rows: dict[str, list[tuple[_Rows, int]]] = {}
        for (split, task), table in dataset.tables.items():
            rows = _Rows(task, SPLITS.index(split) if split in SPLITS else -1, table)
            for row, name in enumerate(table.user_ids):
                self._rows.setdefault(name, []).append((rows, row))
        self.users = len(self._rows)
        # A row adds its target to what its history knows, and more of that than others know.
        self.longest = max(map(len, self._rows.values()), default=0) + longest_input(dataset)

    def of(self, user: str) -> list[int]:
        """All items a user has interacted with, oldest first: the targets of their rows, after what these knew before.

        Histories are cut to their newest events, so no row knows all of them. With times the rows are put in their
        order. Without, the last events are those of a row of test (else valid, else train): the one with the longest
        history, or, where cut histories are equally long, the one that knows most of the others' targets; what it does
        not know comes before, each item once.

        Args:
          user: as the dataset names them.

        Raises:
          ValueError: if there is no such user; names the nearest.
        """
        if user not in self._rows:
            near = difflib.get_close_matches(user, self._rows, n=3, cutoff=0.5) if self.users <= _COMPARED else []
            raise ValueError(
                f"dataset {self._dataset.name!r} has no user {user!r}; it has {self.users:,}, such as "
                f"{near or sorted(itertools.islice(self._rows, 3))}"
            )
        events = [rows.event(row) for rows, row in self._rows[user]]
        if all(math.isfinite(event.time) for event in events):
            return _in_order(sorted(events, key=lambda event: event.time))
        last = max(event.split for event in events)
        rows = [event for event in events if event.split == last]
        targets = {event.target for event in rows}
        # The last of equals.
        newest = max(reversed(rows), key=lambda row: (len(row.history), sum(item in targets for item in row.history)))
        end = _in_order(event for event in rows if event.history == newest.history)
        ended = set(end)
        before = sorted(events, key=lambda event: (event.split, len(event.history)))
        # Each item once: nothing is counted.
        first = dict.fromkeys(itertools.chain.from_iterable((*event.history, event.target) for event in before))
        return [item for item in first if item not in ended] + end

    def like(self, part: str) -> Iterator[str]:
        """Users of whose name a text is a part, whatever its case."""
        sought = part.casefold()
        return (name for name in self._rows if sought in name.casefold())


def longest_input(dataset: Dataset) -> int:
    """Most events that a row of the dataset tells of, its history and its target."""
    lengths = [int(np.diff(table.offsets).max(initial=0)) for table in dataset.tables.values()]
    return max(lengths, default=0) + 1


def _in_order(events: Iterable[_Event]) -> list[int]:
    """Items of rows that follow one another: of each what its history adds, and its target."""
    items: list[int] = []
    counted: dict[int, int] = {}
    seen: dict[tuple[float, tuple[int, ...], int], str] = {}
    for event in events:
        # Most rows know what came just before: there is nothing to count.
        history = event.history
        if history and tuple(items[-len(history) :]) != history:
            for item in _missing(history, counted):
                counted[item] = counted.get(item, 0) + 1
                items.append(item)
        # One event may be a row of several tasks.
        time, target = 0.0 if math.isnan(event.time) else event.time, event.target
        if seen.setdefault((time, history, target), event.task) == event.task:
            counted[target] = counted.get(target, 0) + 1
            items.append(target)
    return items


def _missing(history: tuple[int, ...], counted: dict[int, int]) -> list[int]:
    """Items of a history that were not counted yet, each as often as it is missing."""
    if len(set(history)) == len(history):  # as most are: nothing is counted
        return [item for item in history if item not in counted]
    left = {item: count - counted.get(item, 0) for item, count in Counter(history).items()}
    missing = []
    for item in history:
        if left[item] > 0:
            left[item] -= 1
            missing.append(item)
    return missing
