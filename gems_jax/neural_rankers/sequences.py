"""Item sequences of a table's users, left-padded, and what comes next at each place."""

import numpy as np

from gems_jax.data.dataset.tables import Table


def histories(table: Table, rows: np.ndarray, length: int) -> np.ndarray:
    """Each row's newest items, int32 ``[r, length]``, oldest first, -1 before the first.

    Args:
      table: whose histories they are.
      rows: int ``[r]``.
      length: items that are kept.

    Example:
      >>> from gems_jax.data.dataset.tables import Row
      >>> histories(Table.from_rows("rec", [Row("ann", [3, 1], 2)]), np.array([0]), 3).tolist()
      [[-1, 3, 1]]
    """
    places = table.offsets[1:][rows][:, None] - np.arange(length, 0, -1)
    real = places >= table.offsets[:-1][rows][:, None]
    items = table.history if len(table.history) else np.zeros(1, np.int32)
    return np.where(real, items[np.maximum(places, 0)], -1).astype(np.int32)


def training_sequences(table: Table, length: int, num_items: int) -> tuple[np.ndarray, np.ndarray]:
    """Sequences that hold what training rows say, each transition of a user once.

    A row is the sequence of its history and target. Of a user's rows those are left out that others go on from, and a
    pair of neighbours that several sequences have counts where most items stand before it.

    Args:
      table: training rows.
      length: items that are read.
      num_items: size of the catalogue.

    Returns:
      ``inputs`` and ``targets``, int32 ``[S, length]``; -1 pads inputs, and targets that do not count.

    Example:
      >>> from gems_jax.data.dataset.tables import Row
      >>> rows = [Row("ann", [3], 1), Row("ann", [3, 1], 2), Row("bob", [0], 4)]
      >>> inputs, targets = training_sequences(Table.from_rows("rec", rows), 2, num_items=5)
      >>> inputs.tolist(), targets.tolist()
      ([[3, 1], [-1, 0]], [[1, 2], [-1, 4]])
    """
    rows = np.arange(len(table))
    inputs = histories(table, rows, length)
    targets = np.concatenate([inputs[:, 1:], table.target[:, None].astype(np.int32)], axis=1)
    targets = np.where(inputs >= 0, targets, -1)
    _, user = np.unique(np.asarray(table.user_ids, np.str_), return_inverse=True)
    before = np.cumsum((inputs >= 0).astype(np.int64), axis=1)
    row, place = np.nonzero(targets >= 0)
    pair = inputs[row, place].astype(np.int64) * num_items + targets[row, place]
    # Of equal pairs the first stays: of the longest context, and of these the one in the longest row, which others
    # begin like.
    total = before[:, -1]
    order = np.lexsort((row, -total[row], -before[row, place], pair, user[row]))
    same = (np.diff(user[row][order]) == 0) & (np.diff(pair[order]) == 0)
    again = order[1:][same]
    targets[row[again], place[again]] = -1
    kept = (targets >= 0).any(axis=1)
    return inputs[kept], targets[kept]
