"""Users and items of too few events are left out until none is left: the k-core."""

from __future__ import annotations

import numpy as np

from gems_jax.data.raw.examples import Examples
from gems_jax.data.raw.ragged import Ragged


def to_core(examples: Examples, core: int, min_rows: int = 0, both_tasks: bool = False) -> tuple[Examples, int]:
    """The largest set of rows in which everything is frequent enough, which is unique, and the rounds it took.

    In each round users with fewer than ``core`` rows, or fewer than ``min_rows`` rows of one of their tasks (of these
    that task's rows alone), and with ``both_tasks`` users without rows of all tasks go; then items that occur fewer
    than ``core`` times as a target, in a history or shown go; then rows without a target.

    Args:
      examples: rows.
      core: least number of rows of a user and of occurrences of an item.
      min_rows: least number of rows of a task.
      both_tasks: whether users must have rows of all tasks.
    """
    rounds = 0
    while True:
        before = _size(examples)
        examples = _frequent_users(examples, core, min_rows, both_tasks)
        examples = _frequent_items(examples, core)
        rounds += 1
        if _size(examples) == before:
            return examples, rounds


def _size(examples: Examples) -> tuple[int, ...]:
    lists = (examples.targets, examples.history, examples.shown)
    return len(examples), *(0 if part is None else len(part.values) for part in lists)


def _frequent_users(examples: Examples, core: int, min_rows: int, both_tasks: bool) -> Examples:
    num_users, num_tasks = len(examples.names.users), len(examples.names.tasks)
    pair = examples.user.astype(np.int64) * num_tasks + examples.task
    if min_rows > 1:
        frequent = np.bincount(pair, minlength=num_users * num_tasks) >= min_rows
        examples, pair = examples.take(frequent[pair]), pair[frequent[pair]]
    kept = np.bincount(examples.user, minlength=num_users) >= core
    if both_tasks:
        by_task = np.bincount(pair, minlength=num_users * num_tasks).reshape(num_users, num_tasks) > 0
        used = np.asarray(by_task.any(axis=0))
        # Recommendation and search both, even where the source has rows of one alone.
        used[:2] = True
        kept &= by_task[:, used].all(axis=1)
    return examples.take(kept[examples.user])


def _frequent_items(examples: Examples, core: int) -> Examples:
    if core <= 1:
        return examples
    counts = np.zeros(len(examples.names.items), np.int64)
    for lists in (examples.targets, examples.history, examples.shown):
        if lists is not None:
            counts += np.bincount(lists.values, minlength=len(counts))
    frequent = counts >= core

    def keep(lists: Ragged | None, by: Ragged | None = None) -> Ragged | None:
        return None if lists is None or by is None else lists.keep(frequent[by.values])

    examples = examples.replace(
        targets=examples.targets.keep(frequent[examples.targets.values]),
        history=keep(examples.history, examples.history),
        history_task=keep(examples.history_task, examples.history),
        shown=keep(examples.shown, examples.shown),
        negatives=keep(examples.negatives, examples.negatives),
    )
    return examples.take(examples.targets.lengths > 0)
