"""Rows that stand in the data twice, alike in everything that is read: a log that was written or joined twice."""

from __future__ import annotations

import numpy as np

from gems_jax.data.raw.examples import Examples
from gems_jax.data.raw.ragged import Ragged

_COLUMNS = ("user", "task", "query", "time", "split", "targets", "history", "history_task", "negatives", "shown")


def without_copies(examples: Examples) -> Examples:
    """Each row once, where the first of its like stands.

    Args:
      examples: rows with times: without them a copy cannot be told from a second event.
    """
    candidates = same_moment(examples)
    if not candidates.any():
        return examples
    columns = [value for name in _COLUMNS if (value := getattr(examples, name)) is not None]
    seen: set[tuple[object, ...]] = set()
    keep = np.ones(len(examples), bool)
    for row in np.flatnonzero(candidates).tolist():
        key = tuple(value[row].tobytes() if isinstance(value, Ragged) else value[row].item() for value in columns)
        keep[row] = key not in seen
        seen.add(key)
    return examples if keep.all() else examples.take(keep)


def same_moment(examples: Examples) -> np.ndarray:
    """bool ``[R]``: rows whose user has another row of the same time.

    Args:
      examples: rows with times.
    """
    order = np.lexsort((examples.time, examples.user))
    user, time = examples.user[order], examples.time[order]
    same = (user[1:] == user[:-1]) & (time[1:] == time[:-1])
    result = np.zeros(len(examples), bool)
    result[order[1:][same]] = True
    result[order[:-1][same]] = True
    return result
