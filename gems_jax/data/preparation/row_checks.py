"""Finds what is wrong with a row only beside the others: unknown items, targets in the history, repeats."""

from __future__ import annotations

import numpy as np

from gems_jax.data.raw.examples import Examples
from gems_jax.data.raw.ids import by_value
from gems_jax.data.raw.quarantine import Quarantine
from gems_jax.data.raw.ragged import Ragged, pair_keys
from gems_jax.data.raw.reasons import DUPLICATE, IN_HISTORY, LEFT_OUT_ITEM, REPEATED, UNKNOWN_ITEM


def check_rows(examples: Examples, known: np.ndarray, repeats: bool, quarantine: Quarantine, path: str) -> Examples:
    """Leaves out targets and histories' items that cannot be used, and rows without any target left.

    Args:
      examples: rows as read.
      known: bool, by item number: whether the catalogue has it.
      repeats: whether a user may interact with an item twice.
      quarantine: takes targets (kind ``target``) and histories' items (kind ``history``).
      path: of the source, for messages.

    Raises:
      ValueError: too many are bad.
    """
    if examples.targets.lengths.max(initial=0) > 1:
        distinct = examples.targets.distinct()
        quarantine.copies["target"] += len(examples.targets.values) - len(distinct.values)
        examples = examples.replace(targets=distinct)
    total = len(examples.targets.values)
    left_out = _left_out(examples, known, quarantine)
    examples = _drop_targets(examples, left_out[examples.targets.values], LEFT_OUT_ITEM, quarantine)
    examples = _drop_targets(examples, ~known[examples.targets.values], UNKNOWN_ITEM, quarantine)
    if examples.history is not None:
        strange = ~known[examples.history.values]
        _report_history(examples, strange, left_out, quarantine)
        quarantine.check("history", len(strange), path)
        keep = ~strange
        tasks = examples.history_task
        examples = examples.replace(
            history=examples.history.keep(keep), history_task=None if tasks is None else tasks.keep(keep)
        )
        if not repeats and examples.history is not None:
            examples = _drop_targets(
                examples, in_own_history(examples.targets, examples.history), IN_HISTORY, quarantine
            )
    for name in ("negatives", "shown"):
        lists = getattr(examples, name)
        if lists is not None:
            examples = examples.replace(**{name: lists.keep(known[lists.values])})
    twice = repeated_targets(examples, by_time=repeats)
    examples = _drop_targets(examples, twice, DUPLICATE if repeats else REPEATED, quarantine)
    quarantine.check("target", total, path)
    return examples


def in_own_history(targets: Ragged, history: Ragged) -> np.ndarray:
    """bool, for every target: whether the history of its row has it.

    Example:
      >>> in_own_history(Ragged.of([[1, 2], [3]]), Ragged.of([[2, 3], [1]])).tolist()
      [False, True, False]
    """
    size = 1 + max(int(lists.values.max(initial=0)) for lists in (targets, history))
    return np.isin(pair_keys(targets.row_of, targets.values, size), pair_keys(history.row_of, history.values, size))


def repeated_targets(examples: Examples, by_time: bool) -> np.ndarray:
    """bool, for every target: whether its user interacted with it in the same task and split earlier.

    Splits count each for themselves, because an event that stands in two of them is a leak and not a bad row.

    Args:
      examples: rows; those of equal time are in order.
      by_time: whether only events of the same time are the same.
    """
    row = examples.targets.row_of
    order = np.lexsort((np.arange(len(row)), examples.time[row]))
    keys = [examples.user[row], examples.task[row], examples.split[row], examples.targets.values]
    if by_time and not np.isnan(examples.time).any():
        keys.append(np.unique(examples.time, return_inverse=True)[1][row])
    elif by_time:
        return np.zeros(len(row), bool)
    order = order[np.lexsort([key[order] for key in keys])]
    same = np.ones(max(len(order) - 1, 0), bool)
    for key in keys:
        same &= key[order][1:] == key[order][:-1]
    result = np.zeros(len(row), bool)
    result[order[1:][same]] = True
    return result


def _left_out(examples: Examples, known: np.ndarray, quarantine: Quarantine) -> np.ndarray:
    """bool, by item number: whether the item's line of the catalogue could not be used."""
    result = np.zeros_like(known)
    if quarantine.left_out_items:
        names = examples.names.items.names
        for item in np.flatnonzero(~known).tolist():
            result[item] = by_value(names[item]) in quarantine.left_out_items
    return result


def _drop_targets(examples: Examples, bad: np.ndarray, reason: str, quarantine: Quarantine) -> Examples:
    if not bad.any():
        return examples
    row_of = examples.targets.row_of
    names = examples.names.items.names
    for index in np.flatnonzero(bad):
        row = int(row_of[index])
        where = f"{examples.where(row)}, item {names[examples.targets.values[index]]}"
        quarantine.add("target", where, reason, examples.describe(row))
    kept = examples.replace(targets=examples.targets.keep(~bad))
    return kept.take(kept.targets.lengths > 0)


def _report_history(examples: Examples, strange: np.ndarray, left_out: np.ndarray, quarantine: Quarantine) -> None:
    assert examples.history is not None
    row_of = examples.history.row_of
    names = examples.names.items.names
    for index in np.flatnonzero(strange):
        where = examples.where(int(row_of[index]))
        item = examples.history.values[index]
        quarantine.add("history", where, LEFT_OUT_ITEM if left_out[item] else UNKNOWN_ITEM, f"item {names[item]}")
