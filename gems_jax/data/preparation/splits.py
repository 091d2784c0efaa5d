"""Leave-one-out tables from each user's chronological events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from gems_jax.data.dataset.tables import SPLITS, Row, Table
from gems_jax.data.preparation.negatives import NUM_NEGATIVES, NegativeSampler

MIN_EVENTS = 3


class Event(NamedTuple):
    """A user's interaction with an item, with the query that led there where there was one."""

    item: int
    query: str = ""


def leave_one_out(
    events: Mapping[str, Sequence[Event]],
    item_ids: Sequence[str],
    seed: int,
    num_negatives: int = NUM_NEGATIVES,
    same_query: Mapping[str, Sequence[int]] | None = None,
) -> dict[tuple[str, str], Table]:
    """Six tables: a user's last event is test, the one before valid, earlier ones from the second on train.

    The history of a target is what precedes it. Every event gives a ``rec`` row, and one with a query a ``src``
    row. Valid and test rows get negatives among items the user never touched, ``src`` rows also without the
    items that share the row's query.

    Args:
      events: user to events, oldest first; users with fewer than three events are the caller's to leave
        out.
      item_ids: the catalogue.
      seed: of the negatives.
      num_negatives: how many a row of valid and test gets.
      same_query: query to the item numbers it stands for.

    Returns:
      ``(split, task)`` to `Table`.
    """
    rows: dict[tuple[str, str], list[Row]] = {(split, task): [] for split in SPLITS for task in ("rec", "src")}
    sampler = NegativeSampler(item_ids, seed)
    same_query = same_query or {}
    for user, user_events in events.items():
        items = [event.item for event in user_events]
        last = len(items) - 1
        for position in range(1, len(items)):
            split = "test" if position == last else "valid" if position == last - 1 else "train"
            event = user_events[position]
            tasks = ["rec", "src"] if event.query else ["rec"]
            for task in tasks:
                negatives: np.ndarray | None = None
                if split != "train":
                    shared = same_query.get(event.query, ()) if task == "src" else ()
                    key = f"{split}/{task}/{user}"
                    negatives = sampler.draw(key, [*items, *shared], num_negatives)
                query = event.query if task == "src" else ""
                rows[split, task].append(Row(user, items[:position], event.item, query, negatives))
    return {key: Table.from_rows(key[1], table_rows) for key, table_rows in rows.items()}
