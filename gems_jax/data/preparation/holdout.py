"""Holds out rows for valid and test, and finds what training may therefore not see."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gems_jax.data.dataset.tables import SPLITS
from gems_jax.data.raw.examples import Examples
from gems_jax.data.raw.ragged import Ragged, pair_keys, positions_in, row_blocks

TRAIN, VALID, TEST = range(len(SPLITS))
# Rows of a user of which two can be held out.
MIN_ROWS = 3


class Events(NamedTuple):
    """``R`` rows of one target each.

    Args:
      user: int ``[R]``.
      time: float64 ``[R]``, or None where times are not known: then any occurrence of an item is the event.
      split: int8 ``[R]``, 0 train, 1 valid, 2 test.
      target: int ``[R]``, item numbers.
      history: item numbers.
    """

    user: np.ndarray
    time: np.ndarray | None
    split: np.ndarray
    target: np.ndarray
    history: Ragged


def leave_one_out_split(examples: Examples, per_task: bool = True) -> np.ndarray:
    """int8 ``[R]``: each user's last row is test, the one before valid, the others train.

    Rows are ordered by time, those of equal time as they were read. Users with fewer than three rows train only.

    Args:
      examples: rows.
      per_task: last and last but one of each task, rather than of all rows.
    """
    count = len(examples)
    task = examples.task if per_task else np.zeros(count, np.int32)
    order = np.lexsort((np.arange(count), examples.time, task, examples.user))
    group = np.ones(count, bool)
    group[1:] = (np.diff(examples.user[order]) != 0) | (np.diff(task[order]) != 0)
    starts = np.flatnonzero(group)
    sizes = np.diff([*starts, count])
    from_end = np.repeat(starts + sizes, sizes) - np.arange(count)
    split = np.full(count, TRAIN, np.int8)
    enough = np.repeat(sizes, sizes) >= MIN_ROWS
    split[order[enough & (from_end == 1)]] = TEST
    split[order[enough & (from_end == 2)]] = VALID
    return split


def leaking_targets(events: Events) -> np.ndarray:
    """bool ``[R]``: rows whose target is an event that a later split holds out for the same user.

    An event is a user, a time and an item. Where times are unknown every occurrence of the item is taken for it.
    """
    keys = pair_keys(events.user, events.target, _size(events))
    if events.time is not None:
        # Numbers of distinct (user, item) pairs and times stay far below 2**31 each.
        pairs, times = (np.unique(part, return_inverse=True)[1] for part in (keys, events.time))
        keys = pair_keys(pairs, times, len(keys) + 1)
    leaks = np.zeros(len(keys), bool)
    for split in (VALID, TEST):
        leaks |= (events.split < split) & np.isin(keys, keys[events.split == split])
    return leaks


def leaking_history(events: Events, own_split: bool = False) -> np.ndarray:
    """bool, for every item of the histories: whether it may be an event held out for the same user.

    A row may see events of the splits before its own, and training rows those of training; with ``own_split`` rows of
    valid and test may see those of their own split, too, as where splits are spans of time. A history stands for
    events before its row's time: an item there may be the held-out event only if that came before the row. Where
    times are unknown every occurrence of the item is taken for it.
    """
    size = _size(events)
    keys_of_targets = pair_keys(events.user, events.target, size)
    leaks = np.zeros(len(events.history.values), bool)
    for split in (VALID, TEST):
        held, first = _held_out(events, keys_of_targets, events.split == split)
        if not len(held):
            continue
        for rows in row_blocks(events.history.offsets):
            block = events.history.rows(rows)
            row = rows.start + block.row_of
            position, is_held = positions_in(pair_keys(events.user[row], block.values, size), held)
            if events.time is not None:
                is_held &= first[position] < events.time[row]
            values = slice(events.history.offsets[rows.start], events.history.offsets[rows.stop])
            leaks[values] |= is_held & (events.split[row] < split + (not own_split))
    return leaks


def own_targets(target: np.ndarray, history: Ragged) -> np.ndarray:
    """bool, for every item of the histories: whether it is the target of its own row.

    Where a user takes an item once it is the event itself, recorded again as one of another task.

    Args:
      target: int ``[R]``.
      history: of the same rows.
    """
    return np.asarray(history.values == target[history.row_of])


def _size(events: Events) -> int:
    return 1 + max(int(events.target.max(initial=0)), int(events.history.values.max(initial=0)))


def _held_out(events: Events, keys: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorted keys of users and items held out, and the earliest time of each."""
    time = np.zeros(len(keys)) if events.time is None else events.time
    order = np.lexsort((time[rows], keys[rows]))
    held, first = np.unique(keys[rows][order], return_index=True)
    return held, time[rows][order][first]
