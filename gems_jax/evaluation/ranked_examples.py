"""A few rows of an evaluation in words, for people to read."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from gems_jax.data.dataset.tables import Table


def readable_examples(
    table: Table,
    ids: np.ndarray,
    scores: np.ndarray,
    titles: Sequence[str],
    *,
    count: int = 3,
    shown: int = 5,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Rows picked at random, good and bad alike, with titles in place of item numbers.

    Args:
      table: R rows.
      ids: item numbers ``[R, k]``, best first, -1 where there is none.
      scores: their scores ``[R, k]``.
      titles: of all items, by item number.
      count: number of rows.
      shown: results a row.
      seed: of the choice.

    Returns:
      One dictionary a row: ``"task"``, ``"user"``, ``"history"`` (titles, oldest first), ``"query"``,
      ``"top"`` (each ``"title"``, ``"score"``, ``"hit"``) and ``"target"``; JSON values only.

    Example:
      >>> from gems_jax.data.dataset.tables import Row
      >>> table = Table.from_rows("src", [Row("ann", [0], 1, query="red shoe")])
      >>> ids, scores = np.array([[1, 0]]), np.array([[-0.1, -2.0]])
      >>> (example,) = readable_examples(table, ids, scores, ["Sock", "Red shoe"])
      >>> example["query"], example["top"][0]
      ('red shoe', {'title': 'Red shoe', 'score': -0.1, 'hit': True})
    """
    rows = np.random.default_rng(seed).permutation(len(table))[:count]
    examples = []
    for row in rows.tolist():
        target = int(table.target[row])
        results = [
            {"title": titles[item], "score": float(score), "hit": item == target}
            for item, score in zip(ids[row, :shown].tolist(), scores[row, :shown], strict=True)
            if item >= 0
        ]
        examples.append(
            {
                "task": table.task,
                "user": str(table.user_ids[row]),
                "history": [titles[item] for item in table.history_of(row).tolist()],
                "query": table.queries[row],
                "top": results,
                "target": titles[target],
            }
        )
    return examples
