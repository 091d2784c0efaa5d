"""Histories as the rows of each split may have them, with what was left out or kept counted."""

from __future__ import annotations

from gems_jax.data.preparation.histories import keep_tasks, make_histories
from gems_jax.data.preparation.holdout import Events, leaking_history, leaking_targets, own_targets
from gems_jax.data.preparation.options import Preprocessing
from gems_jax.data.raw.examples import Examples
from gems_jax.data.raw.ragged import Ragged


def visible_histories(
    examples: Examples, preprocessing: Preprocessing, clean: bool, same_event: bool, own_split: bool
) -> tuple[Examples, dict[str, int]]:
    """Rows with histories: made where missing, without what the split may not see, cut to their newest events.

    Args:
      examples: all rows of some users, of one target each, with splits.
      preprocessing: options; nothing in it may be None.
      clean: whether what leaks is left out.
      same_event: whether a row of each task may be one event.
      own_split: whether rows may see events of their own split that came before them.

    Returns:
      The rows that are left, and how many events were left out, or kept though they are odd, by what they are.
    """
    removed: dict[str, int] = {}
    longest = preprocessing.max_history or 0
    # Events left out below make room for older ones: an item stands in a history once for each task at most, and
    # a user has an event of each task held out for valid and for test.
    tasks = len(examples.names.tasks)
    spare = 0 if preprocessing.repeats else 2 * tasks * tasks
    if clean:
        keep = ~leaking_targets(_events(examples, preprocessing.repeats))
        removed["training targets that are held out"] = int((~keep).sum())
        examples = examples.take(keep)
    if examples.history is None:
        newest = 0 if preprocessing.history_tasks or not longest else longest + spare
        examples = make_histories(examples, newest, same_event)
    examples = keep_tasks(examples, preprocessing.history_tasks)
    history = examples.history or Ragged.empty(len(examples))
    if clean:
        leaks = leaking_history(_events(examples, preprocessing.repeats), own_split)
        removed["events of histories that are held out"] = int(leaks.sum())
        history = history.keep(~leaks)
    if not preprocessing.repeats:
        # An item of the user's rows of another task before: there it is no answer to be found, here it would be told.
        own = own_targets(examples.targets.values, history)
        removed["targets in their rows' own histories"] = int(own.sum())
        history = history.keep(~own)
    if longest:
        history = history.last(longest)
    examples = examples.replace(history=history, history_task=None)
    if own_split:
        removed |= _odd_as_published(examples, preprocessing.repeats)
    if preprocessing.min_history:
        examples = examples.take(history.lengths >= preprocessing.min_history)
    return examples, {name: count for name, count in removed.items() if count}


def _odd_as_published(examples: Examples, repeats: bool) -> dict[str, int]:
    """Counts what stays because the rows were published so."""
    events = _events(examples, repeats)
    own_split = leaking_history(events) & ~leaking_history(events, own_split=True)
    return {
        "events of histories that the row's own split holds out, kept as published": int(own_split.sum()),
        "targets in their rows' own histories, kept as published": int(
            own_targets(events.target, events.history).sum()
        ),
    }


def _events(examples: Examples, repeats: bool) -> Events:
    history = examples.history or Ragged.empty(len(examples))
    return Events(examples.user, examples.time if repeats else None, examples.split, examples.targets.values, history)
