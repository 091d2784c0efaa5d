"""The items each row of valid and test is ranked against."""

from __future__ import annotations

import numpy as np

from gems_jax.data.examples import Examples
from gems_jax.data.holdout import TRAIN
from gems_jax.data.negatives import NegativeSampler
from gems_jax.data.ragged import Ragged, distinct_pairs, pair_keys
from gems_jax.data.tables import SPLITS, Item

# Rows at a time: bounds the memory, changes nothing.
_ROWS = 65_536


def items_touched(examples: Examples, num_items: int) -> Ragged:
    """By user number: the items the user took or has in a history, in any split."""
    keys = [distinct_pairs(examples.user, examples.targets, num_items)]
    if examples.history is not None:
        keys.append(distinct_pairs(examples.user, examples.history, num_items))
    return _by_key(np.concatenate(keys), len(examples.names.users), num_items)


class EvaluationNegatives:
    """Draws the items that rows of valid and test are ranked against, for all users alike.

    A row has `count` of them, or as many as the source's own longest list has, where it brings lists and all are
    shorter. Drawn are items that the user never touched and that no search of the row's query led to; a row's draw
    depends on the seed, the catalogue, the user, the task and the split only.

    Args:
        examples: all rows, of one target each.
        items: the catalogue.
        seed: of the draws.
        count: items a row; 0: none.
        remove_positives: whether positives among the source's own negatives are dropped.
    """

    def __init__(self, examples: Examples, items: list[Item], seed: int, count: int, remove_positives: bool) -> None:
        self._count, self._remove_positives, self._num_items = count, remove_positives, len(items)
        if not count:
            return
        found = examples.query >= 0
        self._same_query = _by_key(
            pair_keys(examples.query[found], examples.targets.values[found], len(items)),
            len(examples.names.queries) + 1,
            len(items),
        )
        self._sampler = NegativeSampler([item.item_id for item in items], seed)
        if examples.negatives is not None:
            own = examples.negatives.take(np.flatnonzero(examples.split != TRAIN)).distinct()
            self._count = min(count, int(own.lengths.max(initial=0)) or count)

    def of(self, examples: Examples, touched: Ragged) -> np.ndarray | None:
        """int32 `[E, C]` for the `E` rows of valid and test, in order: the source's own, filled up by drawn ones.

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
            # -1, no query, is the last row, which is empty.
            no_query = len(self._same_query) - 1
            excluded = positives.beside(self._same_query.take(np.where(query < 0, no_query, query)))
            own = Ragged.empty(len(user))
            if examples.negatives is not None:
                own = examples.negatives.take(rows[block]).distinct()
                if self._remove_positives:
                    own = own.keep(~_within(own, positives, self._num_items))
                own = own.first(self._count)
            chosen[block] = _filled(own, keys[block], excluded, self._sampler, self._count)
        return chosen


def _filled(own: Ragged, keys: list[str], excluded: Ragged, sampler: NegativeSampler, count: int) -> np.ndarray:
    """Each row's own negatives, and drawn ones behind them where they are fewer than `count`."""
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
    for place, row in zip(order.tolist(), rows[order].tolist(), strict=True):
        name = f"{SPLITS[examples.split[row]]}/{tasks[examples.task[row]]}/{users[examples.user[row]]}"
        number = seen[name] = seen.get(name, -1) + 1
        keys[place] = f"{name}/{number}"
    return keys


def _by_key(keys: np.ndarray, groups: int, size: int) -> Ragged:
    """Distinct (group, item) pairs as the items of every group."""
    group, item = np.divmod(np.unique(keys), size)
    return Ragged.from_lengths(item.astype(np.int32), np.bincount(group, minlength=groups))


def _within(lists: Ragged, others: Ragged, size: int) -> np.ndarray:
    """bool, for every value: whether the other lists' row has it."""
    return np.isin(pair_keys(lists.row_of, lists.values, size), pair_keys(others.row_of, others.values, size))
