"""Which rows ask for more than memory: their target never followed the user's last item in training."""

from collections.abc import Mapping, Sequence

import numpy as np

from gems_jax.data.dataset.tables import Dataset, Table


def new_transitions(training: Sequence[Table], table: Table, num_items: int) -> np.ndarray:
    """Rows whose pair (last item of the history, target) occurs in no training row.

    A training row's pairs are those of neighbours in its history, and its last item with its target. Rows without a
    history have no such pair and are not among them.

    Args:
      training: training tables, of all tasks.
      table: R rows.
      num_items: size of the catalogue.

    Returns:
      bool ``[R]``.

    Example:
      >>> from gems_jax.data.dataset.tables import Row
      >>> training = Table.from_rows("rec", [Row("ann", [0, 1], 2)])
      >>> rows = Table.from_rows("rec", [Row("bob", [0], 1), Row("cy", [1], 2), Row("di", [2], 1), Row("ed", [], 1)])
      >>> new_transitions([training], rows, num_items=3).tolist()
      [False, False, True, False]
    """
    known = np.unique(np.concatenate([np.zeros(0, np.int64), *(_pairs(each, num_items) for each in training)]))
    rows, pairs = _last_pairs(table, num_items)
    new = np.zeros(len(table), bool)
    new[rows] = ~np.isin(pairs, known)
    return new


def new_by_task(dataset: Dataset, tables: Mapping[str, Table]) -> dict[str, np.ndarray]:
    """`new_transitions` of the tasks without queries: what a search finds follows from its query.

    Args:
      dataset: whose training rows count.
      tables: task to its rows.
    """
    training = [dataset.tables["train", task] for task in dataset.tasks]
    return {
        task: new_transitions(training, table, len(dataset.items))
        for task, table in tables.items()
        if not any(table.queries)
    }


def _last_pairs(table: Table, num_items: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows that have a history, and the number of their last item with their target."""
    rows = np.flatnonzero(np.diff(table.offsets))
    last = table.history[table.offsets[1:][rows] - 1].astype(np.int64)
    return rows, last * num_items + table.target[rows]


def _pairs(table: Table, num_items: int) -> np.ndarray:
    """Numbers of all pairs of a table's rows, int64."""
    row_of = np.repeat(np.arange(len(table)), np.diff(table.offsets))
    inside = row_of[1:] == row_of[:-1]
    history = table.history.astype(np.int64)
    within = (history[:-1] * num_items + history[1:])[inside]
    return np.concatenate([within, _last_pairs(table, num_items)[1]])
