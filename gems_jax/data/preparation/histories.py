"""Histories made from the rows before, for sources that record events alone."""

from __future__ import annotations

import numpy as np

from gems_jax.data.preparation.holdout import TEST
from gems_jax.data.raw.examples import Examples
from gems_jax.data.raw.ragged import Ragged


def make_histories(examples: Examples, max_history: int = 0, same_event: bool = False) -> Examples:
    """The user's events of earlier times, oldest first, without those that the row's split may not see.

    A training row sees training events, a valid row these alone as well, and a test row those of valid, too. Events
    of a row's own time are not in its history: which of them came first is unknown.

    Args:
      examples: rows of one target each, with splits.
      max_history: newest events kept; 0: all.
      same_event: whether rows of one user, time and item but different tasks are one event.
    """
    count = len(examples)
    order = np.lexsort((np.arange(count), examples.time, examples.user))
    user, time, split = examples.user[order], examples.time[order], examples.split[order]
    target = examples.targets.values[order]
    task = examples.task[order]
    new_user, new_time = np.ones(count, bool), np.ones(count, bool)
    new_user[1:] = user[1:] != user[:-1]
    # Without times every row is later than the one before.
    new_time[1:] = new_user[1:] | (time[1:] != time[:-1])
    position = np.arange(count)
    user_start = np.maximum.accumulate(np.where(new_user, position, 0))
    time_start = np.maximum.accumulate(np.where(new_time, position, 0))
    counted = np.ones(count, bool)
    if same_event and count:
        counted[1:] = new_time[1:] | (target[1:] != target[:-1])
    histories, tasks = [], []
    for seen_by_test in (False, True):
        visible = counted & ((split < TEST) if seen_by_test else (split == 0))
        before = np.concatenate([[0], np.cumsum(visible)])
        starts, ends = before[user_start], before[time_start]
        if max_history:
            starts = np.maximum(starts, ends - max_history)
        rows = (split == TEST) == seen_by_test
        lengths = np.where(rows, ends - starts, 0)
        flat = Ragged(target[visible], np.zeros(1, np.int64))
        histories.append(flat.slices(starts, lengths))
        tasks.append(Ragged(task[visible], np.zeros(1, np.int64)).slices(starts, lengths))
    back = np.empty(count, np.int64)
    back[order] = position
    from_test = (split == TEST)[back]
    return examples.replace(
        history=_choose(histories[0].take(back), histories[1].take(back), from_test),
        history_task=_choose(tasks[0].take(back), tasks[1].take(back), from_test),
    )


def keep_tasks(examples: Examples, wanted: dict[str, list[str]]) -> Examples:
    """Histories of the named tasks with the events of the wanted tasks only.

    Raises:
      ValueError: the histories' tasks are not known.
    """
    if not wanted:
        return examples
    if examples.history is None or examples.history_task is None:
        raise ValueError(
            "preprocessing.history_tasks needs the task of each of a history's events: give the table a column for the "
            "role history_task, or leave the option out"
        )
    names = examples.names.tasks
    allowed = np.ones((len(names), len(names)), bool)
    for task, kept in wanted.items():
        if names.get(task) < 0 or any(names.get(name) < 0 for name in kept):
            raise ValueError(
                f"preprocessing.history_tasks names {task!r}: {kept}; the tasks are {', '.join(names.names)}"
            )
        allowed[names.get(task)] = np.isin(np.arange(len(names)), [names.get(name) for name in kept])
    keep = allowed[examples.task[examples.history.row_of], examples.history_task.values]
    return examples.replace(history=examples.history.keep(keep), history_task=examples.history_task.keep(keep))


def _choose(first: Ragged, second: Ragged, from_second: np.ndarray) -> Ragged:
    """Rows of the one or the other, of which one is empty in every row."""
    both = Ragged.join([first, second])
    count = len(from_second)
    return both.take(np.where(from_second, count + np.arange(count), np.arange(count)))
