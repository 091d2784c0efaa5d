"""Rows of made-up items to rank, and the same as tokens."""

import numpy as np

from gems_jax.data.batching.prompts import EncodedTable
from gems_jax.data.dataset.tables import Row, Table

# Tokens of the vocabulary, and items behind them, a token each.
V, N = 20, 30


def make_table(rows: int = 11, negatives: bool = True, task: str = "rec") -> Table:
    rng = np.random.default_rng(0)
    made = []
    for row in range(rows):
        order = rng.permutation(N).tolist()
        made.append(Row(f"user {row // 2}", order[:3], order[3], negatives=order[4:16] if negatives else None))
    return Table.from_rows(task, made)


def make_encoded(table: Table) -> EncodedTable:
    inputs = [[V + int(item) for item in table.history_of(row)] + [1] for row in range(len(table))]
    return EncodedTable(
        task=table.task,
        tokens=np.asarray([token for tokens in inputs for token in tokens], np.int32),
        offsets=np.cumsum([0, *map(len, inputs)]),
        target_tokens=(V + table.target).astype(np.int32),
    )
