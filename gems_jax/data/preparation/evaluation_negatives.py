"""The items each row of valid and test is ranked against."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from gems_jax.data.dataset.tables import SPLITS, Item
from gems_jax.data.preparation.holdout import TRAIN
from gems_jax.data.preparation.negatives import NegativeSampler
from gems_jax.data.raw.examples import Examples
from gems_jax.data.raw.ragged import Ragged, distinct_pairs, pair_keys

# Rows at a time: bounds the memory, changes nothing.
_ROWS = 65_536


def items_touched(examples: Examples, num_items: int) -> Ragged:
    """By user number: the items the user interacted with or has in a history, in any split."""
    keys = [distinct_pairs(examples.user, examples.targets, num_items)]
    if examples.history is not None:
        keys.append(distinct_pairs(examples.user, examples.history, num_items))
    return _by_key(np.concatenate(keys), len(examples.names.users), num_items)


class QueryItems(NamedTuple):
    """The items that the searches of each query led to, in all rows that are known, also those that were left out.

    Args:
      group: int ``[Q]``, by query number: queries that differ by case or white space alone are one.
      items: by group, item numbers; behind them an empty row, of no query.
    """

    group: np.ndarray
    items: Ragged

    def of(self, query: np.ndarray) -> Ragged:
        """The items of each row's query, none for -1."""
        return self.items.take(np.append(self.group, len(self.items) - 1)[query])

    def renumbered(self, new_numbers: np.ndarray) -> QueryItems:
        """With other item numbers; items whose new number is -1 go."""
        items = self.items.map(new_numbers)
        return self._replace(items=items.keep(items.values >= 0))


def items_by_query(examples: Examples, query_of_item: Mapping[str, str] | None = None) -> QueryItems:
    """The items that any search of a query led to.

    Args:
      examples: all rows as they were read.
      query_of_item: item id to a query that leads to it, where the source has queries of items.
    """
    names = examples.names
    row_of, item = examples.targets.row_of, examples.targets.values
    has_query = examples.query[row_of] >= 0
    left_out = np.asarray(names.left_out.names, np.int64).reshape(-1, 2)
    of_items = [(names.queries.add(text), names.items.get(name)) for name, text in (query_of_item or {}).items()]
    known = np.asarray([pair for pair in of_items if pair[1] >= 0], np.int64).reshape(-1, 2)
    query = np.concatenate([examples.query[row_of[has_query]], left_out[:, 0], known[:, 0]])
    items = np.concatenate([item[has_query], left_out[:, 1], known[:, 1]])
    groups: dict[str, int] = {}
    group = np.asarray(
        [groups.setdefault(" ".join(text.casefold().split()), len(groups)) for text in names.queries.names], np.int64
    )
    size = max(1, len(names.items))
    return QueryItems(group, _by_key(pair_keys(group[query], items, size), len(groups) + 1, size))


class EvaluationNegatives:
    """Draws the items that rows of valid and test are ranked against, for all users alike.

    A row has ``count`` of them, or as many as the source's own longest list has, where it brings lists and all are
    shorter. Drawn are items that the user never touched and that no search of the row's query is known to have led
    to, by whomever and in whichever row, used or left out; a row's draw
    depends on the seed, the catalogue, the user, the task and the split only.

    Args:
      examples: all rows, of one target each.
      items: the catalogue.
      seed: of the draws.
      count: items a row; 0: none.
      remove_positives: whether positives among the source's own negatives are dropped.
      by_query: items that searches led to, in any row that was read.
    """

    def __init__(
        self,
        examples: Examples,
        items: list[Item],
        seed: int,
        count: int,
        remove_positives: bool,
        by_query: QueryItems,
    ) -> None:
        self._by_query = by_query
        self._count, self._remove_positives, self._num_items = count, remove_positives, len(items)
        if not count:
            return
        self._sampler = NegativeSampler([item.item_id for item in items], seed)
        if examples.negatives is not None:
            own = examples.negatives.take(np.flatnonzero(examples.split != TRAIN)).distinct()
            self._count = min(count, int(own.lengths.max(initial=0)) or count)

    @property
    def count(self) -> int:
        """Items that a row is ranked against; 0: all of the catalogue."""
        return self._count

    def of(self, examples: Examples, touched: Ragged) -> np.ndarray | None:
        """int32 ``[E, C]`` for the ``E`` rows of valid and test, in order: the source's own, filled up by drawn ones.

        Args:
          examples: all rows of some users.
          touched: by user.
        """
        if not self._count:
            return None
        rows = np.flatnonzero(examples.split != TRAIN)
        keys = _row_keys(examples, rows)
        chosen = np.zeros((len(rows), self._count), np.int32)
        for start in range(0, len(rows), _ROWS):
            block = slice(start, start + _ROWS)
            user, query = examples.user[rows[block]], examples.query[rows[block]]
            positives = touched.take(user)
            excluded = positives.beside(self._by_query.of(query))
            own = Ragged.empty(len(user))
            if examples.negatives is not None:
                own = examples.negatives.take(rows[block]).distinct()
                if self._remove_positives:
                    own = own.keep(~_within(own, positives, self._num_items))
                own = own.first(self._count)
            chosen[block] = _filled(own, keys[block], excluded, self._sampler, self._count)
        return chosen


def _filled(own: Ragged, keys: list[str], excluded: Ragged, sampler: NegativeSampler, count: int) -> np.ndarray:
    """Each row's own negatives, and drawn ones behind them where they are fewer than ``count``."""
    needed = count - int(own.lengths.min(initial=count))
    short = np.flatnonzero(own.lengths < count)
    drawn = sampler.draw_rows([keys[row] for row in short.tolist()], excluded.beside(own).take(short), needed)
    extra = np.zeros(len(own), np.int64)
    extra[short] = needed
    return own.beside(Ragged.from_lengths(drawn.ravel(), extra)).first(count).values.reshape(-1, count)


def _row_keys(examples: Examples, rows: np.ndarray) -> list[str]:
    """A name of each row that does not depend on the order of the files: split, task, user, and which of these."""
    order = np.lexsort((examples.targets.values[rows], examples.time[rows], examples.user[rows]))
    users, tasks = examples.names.users.names, examples.names.tasks.names
    seen: dict[str, int] = {}
    keys = [""] * len(rows)
    for index, row in zip(order.tolist(), rows[order].tolist(), strict=True):
        name = f"{SPLITS[examples.split[row]]}/{tasks[examples.task[row]]}/{users[examples.user[row]]}"
        number = seen[name] = seen.get(name, -1) + 1
        keys[index] = f"{name}/{number}"
    return keys


def _by_key(keys: np.ndarray, groups: int, size: int) -> Ragged:
    """Distinct (group, item) pairs as the items of every group."""
    group, item = np.divmod(np.unique(keys), size)
    return Ragged.from_lengths(item.astype(np.int32), np.bincount(group, minlength=groups))


def _within(lists: Ragged, others: Ragged, size: int) -> np.ndarray:
    """bool, for every value: whether the other lists' row has it."""
    return np.isin(pair_keys(lists.row_of, lists.values, size), pair_keys(others.row_of, others.values, size))
