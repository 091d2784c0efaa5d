"""A table without rows is an error, in words that say what is missing."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from gems_jax.data.preparation.assemble import Ready
from gems_jax.data.preparation.holdout import MIN_ROWS
from gems_jax.data.raw.quarantine import Quarantine, Unusable


def check_tables(
    name: str,
    counts: Mapping[str, Mapping[str, int]],
    ready: Ready | None = None,
    quarantine: Quarantine | None = None,
) -> None:
    """An empty table is an error before anything is written.

    Args:
      name: of the dataset.
      counts: rows by split and task.
      ready: the rows that the tables were made of, where they are at hand.
      quarantine: the rows left out.

    Raises:
      Unusable: a table is empty.
    """
    for split, tasks in counts.items():
        for task, count in tasks.items():
            if not count:
                reason = "check the raw data" if ready is None else _why(ready, split, task)
                rows = [] if quarantine is None else quarantine.rows
                raise Unusable(f"dataset {name!r}: table {split}/{task} is empty: {reason}", rows)


def _why(ready: Ready, split: str, task: str) -> str:
    if ready.card["splits"] == "as given":
        return f"the data bring their splits, and no usable row of task {task!r} is one of {split}"
    examples = ready.examples
    rows = np.flatnonzero(examples.task == examples.names.tasks.get(task))
    # A row of several targets is several here and one to hold out.
    raw_rows = np.stack([examples.user[rows], examples.file[rows], examples.number[rows]])
    users = np.unique(raw_rows, axis=1)[0]
    most = int(np.bincount(users).max(initial=0))
    if most >= MIN_ROWS or ready.card["splits"] == "leave one out":
        return "its rows were left out by preprocessing.min_history, or because they would show what is held out"
    left = (
        "preprocessing.core, min_rows and both_tasks leave"
        if ready.preprocessing.core or ready.preprocessing.min_rows
        else "there are"
    )
    what = "searches" if task == "src" else f"rows of task {task!r}"
    without = "; files.columns: {query: ''} reads every row as a recommendation" if task == "src" else ""
    return (
        f"no user has {MIN_ROWS} {what}: the last of each user is held out for test and the one before for valid, so "
        f"some user needs {MIN_ROWS}; {left} {len(users):,} by {len(np.unique(users)):,} users, at most {most} each. "
        f"Give users with more of them, or a column for the role split{without}"
    )
