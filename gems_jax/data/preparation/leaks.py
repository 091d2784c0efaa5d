"""Checks of finished tables that fail the preparation: held-out events in training, negatives that are positives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from gems_jax.data.dataset.tables import SPLITS, Dataset, Table
from gems_jax.data.preparation.holdout import VALID, Events, leaking_history, leaking_targets, own_targets
from gems_jax.data.preparation.item_sets import ItemSets
from gems_jax.data.raw.ragged import Ragged, distinct_pairs, pair_keys, positions_in

_REMEDY = "repair the data, or let prepare take them out and count them (data.preprocessing.on_leak: remove)"

_ROWS = 65_536


class _TableRows(NamedTuple):
    events: Events
    number: np.ndarray  # of each row in its table
    table: np.ndarray  # of each row, its index in ``keys``
    keys: list[tuple[str, str]]
    users: list[str]


def check_leaks(dataset: Dataset, repeats: bool = False, cold_items: bool = True) -> dict[str, Any]:
    """Raises where what is held out can be seen, and says which items the splits share.

    An event is a user's interaction with an item at a time, ``(user, time, item)``: the row's timestamp, or its
    position in the user's sequence. The target of a row is the event at the row's time; its history stands for events
    before that. A row may see events of the splits before its own (a test history holds train and valid events), and
    training rows those of training. Everything else is a leak:

    - an event held out for valid or test that is also a target of an earlier split for the same user;
    - a held-out event in the history of a row of its own or an earlier split;
    - unless ``repeats``, the target of a row in its own history, from whichever task.

    Histories name items and not times. Where a user takes an item once (``repeats`` false), any occurrence of a
    held-out item is the held-out event, whatever its time. With ``repeats`` an item in a history can be the held-out
    event only if that came before the row's time: otherwise it is an earlier purchase of the same item.

    Args:
      dataset: its tables.
      repeats: whether users may interact with an item again; the tables then need times.
      cold_items: whether valid and test may have targets that training never shows.

    Returns:
      For the card: items named in each split, and targets of valid and test that training never shows.

    Raises:
      ValueError: naming the table, the user and the item of the first leak, and how many there are.
    """
    check_events(dataset, repeats)
    sets = ItemSets(len(dataset.items), with_users=not cold_items)
    sets.add(dataset.tables)
    return sets.card(dataset.name, dataset.items)


def check_events(
    dataset: Dataset,
    repeats: bool = False,
    before: Mapping[tuple[str, str], int] | None = None,
    own_split: bool = False,
) -> None:
    """Checks events and negatives as `check_leaks` does; for each user they are a matter of their own.

    Args:
      dataset: its tables, or those rows of them that belong to some users.
      repeats: as there.
      before: rows of each table that were checked already, for messages.
      own_split: whether rows may see events of their own split that came before them.

    Raises:
      ValueError: as there.
    """
    rows = _flatten(dataset, repeats)
    before = before or {}
    events = rows.events
    targets = leaking_targets(events)
    if targets.any():
        _fail(dataset, rows, np.flatnonzero(targets), events.target[targets], "as a target the held-out", before)
    history = leaking_history(events, own_split)
    if history.any():
        positions = np.flatnonzero(history)
        row, item = events.history.row_of[positions], events.history.values[positions]
        _fail(dataset, rows, row, item, "in its history the held-out", before)
    if not repeats:
        _check_own(dataset, rows, before)
    _check_negatives(dataset, rows, before)


def _check_own(dataset: Dataset, rows: _TableRows, before: Mapping[tuple[str, str], int]) -> None:
    """No row's history may name its target: a user takes an item once, in whichever task it is recorded."""
    events = rows.events
    own = np.flatnonzero(own_targets(events.target, events.history))
    if len(own):
        row = int(events.history.row_of[own[0]])
        key = rows.keys[rows.table[row]]
        raise ValueError(
            f"{dataset.name}: {len(own):,} leaks. {'/'.join(key)} row {before.get(key, 0) + rows.number[row]} of user "
            f"{rows.users[events.user[row]]!r} has in its history item {dataset.items[events.target[row]].item_id!r}, "
            f"its own target; where users take items again, say so (data.preprocessing.repeats: true)"
        )


def _flatten(dataset: Dataset, repeats: bool) -> _TableRows:
    keys = [key for key, table in dataset.tables.items() if len(table)]
    tables = [dataset.tables[key] for key in keys]
    users: dict[str, int] = {}
    user = [users.setdefault(name, len(users)) for table in tables for name in table.user_ids]
    if repeats and any(table.time is None for table in tables):
        raise ValueError(
            "preprocessing.repeats needs timestamps: without them an earlier purchase cannot be told from the one held "
            "out"
        )
    events = Events(
        np.asarray(user, np.int64),
        np.concatenate([_times(table) for table in tables]) if repeats else None,
        np.concatenate(
            [np.full(len(table), SPLITS.index(key[0]), np.int8) for key, table in zip(keys, tables, strict=True)]
        ),
        np.concatenate([table.target for table in tables]),
        Ragged.join([Ragged(table.history, table.offsets) for table in tables]),
    )
    number = np.concatenate([np.arange(len(table)) for table in tables])
    table_of = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
    return _TableRows(events, number, table_of, keys, list(users))


def _times(table: Table) -> np.ndarray:
    assert table.time is not None
    return table.time


def _fail(
    dataset: Dataset,
    rows: _TableRows,
    leaking: np.ndarray,
    items: np.ndarray,
    how: str,
    before: Mapping[tuple[str, str], int],
) -> None:
    row, item, events = int(leaking[0]), int(items[0]), rows.events
    user = rows.users[events.user[row]]
    held = (events.user == events.user[row]) & (events.target == item) & (events.split >= max(events.split[row], VALID))
    where = "/".join(rows.keys[rows.table[np.flatnonzero(held)[-1]]]) if held.any() else "test"
    key = rows.keys[rows.table[row]]
    raise ValueError(
        f"{dataset.name}: {len(leaking):,} leaks. {'/'.join(key)} row {before.get(key, 0) + rows.number[row]} of user "
        f"{user!r} has {how} item {dataset.items[item].item_id!r}, a target of {where}; {_REMEDY}"
    )


def _check_negatives(dataset: Dataset, rows: _TableRows, before: Mapping[tuple[str, str], int]) -> None:
    """No negative may be an item that the user has as a target or in a history anywhere."""
    events, size = rows.events, len(dataset.items)
    users = {name: number for number, name in enumerate(rows.users)}
    positives = np.unique(
        np.concatenate(
            [
                pair_keys(events.user, events.target, size),
                distinct_pairs(events.user, events.history, size),
            ]
        )
    )
    for key, table in dataset.tables.items():
        if table.negatives is None or not len(table):
            continue
        user = np.asarray([users[name] for name in table.user_ids], np.int64)
        for start in range(0, len(table), _ROWS):
            block = table.negatives[start : start + _ROWS]
            wrong = positions_in(pair_keys(user[start : start + _ROWS, None], block, size), positives)[1]
            if wrong.any():
                row, column = (int(indices[0]) for indices in np.nonzero(wrong))
                number = before.get(key, 0) + start + row
                name, item = table.user_ids[start + row], dataset.items[block[row, column]].item_id
                raise ValueError(
                    f"{dataset.name}: negatives are positives: {'/'.join(key)} row {number} ranks against item "
                    f"{item!r}, which user {name!r} took; {_REMEDY}"
                )
