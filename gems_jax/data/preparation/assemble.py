"""From the rows of a source to its tables, step by step, each counted for the card."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from gems_jax.data.dataset.tables import SPLITS, Item, Table
from gems_jax.data.preparation.copies import without_copies
from gems_jax.data.preparation.evaluation_negatives import EvaluationNegatives, items_by_query, items_touched
from gems_jax.data.preparation.holdout import TRAIN, leave_one_out_split
from gems_jax.data.preparation.k_core import to_core
from gems_jax.data.preparation.negatives import NUM_NEGATIVES
from gems_jax.data.preparation.oddities import remark_equal_times, remark_values
from gems_jax.data.preparation.options import Preprocessing
from gems_jax.data.preparation.row_checks import check_rows
from gems_jax.data.preparation.visible_histories import visible_histories
from gems_jax.data.raw.examples import UNKNOWN, Examples
from gems_jax.data.raw.quarantine import Quarantine, Unusable
from gems_jax.data.raw.ragged import Ragged
from gems_jax.data.raw.source import Source


class _Record:
    """Counts what is left after each step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []

    def add(self, step: str, examples: Examples, **more: Any) -> None:
        self.steps.append(
            {
                "step": step,
                "rows": rows_by_task(examples),
                "users": len(np.unique(examples.user)),
                "items": len(np.unique(examples.targets.values)),
                **more,
            }
        )


def rows_by_task(examples: Examples) -> dict[str, int]:
    """Rows of each task that has some."""
    counts = np.bincount(examples.task, minlength=len(examples.names.tasks))
    return {name: int(count) for name, count in zip(examples.names.tasks.names, counts, strict=True) if count}


@dataclass(frozen=True)
class Ready:
    """Rows of one target each, checked, split and numbered: what is left to do is done for each user alone.

    Args:
      name: of the dataset.
      examples: the rows.
      items: the catalogue.
      preprocessing: options.
      negatives: draws what rows of valid and test are ranked against.
      clean: whether what leaks is left out.
      timed: whether the rows' times are kept.
      same_event: whether a row of each task may be one event.
      own_split: whether rows may see events of their own split that came before them.
      tasks: the tasks that have rows, in order.
      card: of the dataset, as far as it is known.
    """

    name: str
    examples: Examples
    items: list[Item]
    preprocessing: Preprocessing
    negatives: EvaluationNegatives
    clean: bool
    timed: bool
    same_event: bool
    own_split: bool
    tasks: tuple[str, ...]
    card: dict[str, Any]


class Shard(NamedTuple):
    """Finished tables of some users, and what was left out of them or kept though it is odd."""

    tables: dict[tuple[str, str], Table]
    users: int
    removed: dict[str, int]


def get_ready(
    source: Source,
    preprocessing: Preprocessing,
    quarantine: Quarantine,
    seed: int = 0,
    num_negatives: int = NUM_NEGATIVES,
) -> Ready:
    """Checks of rows, core, splits, one target a row, in this order.

    Args:
      source: rows and catalogue.
      preprocessing: what to do; nothing in it may be None.
      quarantine: takes bad rows.
      seed: of negatives.
      num_negatives: items each row of valid and test is ranked against; 0: the whole catalogue.

    Raises:
      ValueError: too many rows are bad, nothing is left, or options do not fit the rows.
    """
    record = _Record()
    record.add("read", source.examples)
    timed = _are_timed(source.examples, source.path)
    by_query = items_by_query(source.examples, source.query_of_item)
    known_ids = {item.item_id for item in source.items}
    known = np.asarray([name in known_ids for name in source.examples.names.items.names], bool)
    examples = source.examples
    remark_values(examples, source.items, quarantine)
    if timed:
        examples = without_copies(examples)
        quarantine.copies["row"] += len(source.examples) - len(examples)
        if examples.history is None and source.query_of_item is None:
            remark_equal_times(examples, quarantine)
    examples = check_rows(examples, known, preprocessing.repeats, quarantine, source.path)
    record.add("usable", examples)
    if not timed:
        examples = examples.replace(time=np.arange(len(examples), dtype=np.float64))
    recorded = bool(len(examples) and (examples.split != UNKNOWN).all())
    if preprocessing.core or preprocessing.min_rows or preprocessing.both_tasks:
        core, min_rows = preprocessing.core or 0, preprocessing.min_rows or 0
        examples, rounds = to_core(examples, core, min_rows, bool(preprocessing.both_tasks))
        record.add(
            f"core {core}, {min_rows} rows a task, both tasks: {preprocessing.both_tasks}", examples, rounds=rounds
        )
    if not len(examples):
        before, last = next(pair for pair in itertools.pairwise(record.steps) if not pair[1]["rows"])
        if last["step"] == "usable":
            counts = "; ".join(f"{count:,} times {reason}" for reason, count in quarantine.counts().items())
            raise Unusable(f"{source.path}: no row can be used: {counts}", quarantine.rows)
        raise ValueError(
            f"{source.path}: no row is left after the step {last['step']!r}; before there were {before['rows']} of "
            f"{before['users']:,} users and {before['items']:,} items. Relax it (data.preprocessing) or give more rows"
        )
    if not recorded:
        examples = examples.replace(split=leave_one_out_split(examples, source.per_task))
    if source.query_of_item is not None:
        examples = _with_searches(examples, source.query_of_item)
        record.add("a search for each event whose item has a query", examples)
    examples = _one_target_a_row(examples, preprocessing)
    record.add(f"one target a row ({preprocessing.multi_click})", examples)
    examples, items, new_numbers = _renumbered(examples, source.items, source.used_only or bool(preprocessing.core))
    clean = not recorded or preprocessing.on_leak == "remove"
    return Ready(
        name=source.name,
        examples=examples,
        items=items,
        preprocessing=preprocessing,
        negatives=EvaluationNegatives(
            examples, items, seed, num_negatives, remove_positives=clean, by_query=by_query.renumbered(new_numbers)
        ),
        clean=clean,
        timed=timed or not recorded,
        same_event=source.query_of_item is not None,
        own_split=source.as_published,
        tasks=tuple(rows_by_task(examples)),
        card={
            "name": source.name,
            "seed": seed,
            "num_negatives": num_negatives,
            "items": len(items),
            "interactions": len(source.examples),
            "steps": record.steps,
            "splits": "as given" if recorded else "leave one out" + (" of each task" if source.per_task else ""),
        },
    )


def finish(ready: Ready, rows: np.ndarray) -> Shard:
    """The tables of some users: histories, negatives.

    Args:
      ready: all rows.
      rows: int64, all rows of the users, in order.
    """
    examples = ready.examples.take(rows)
    touched = items_touched(examples, len(ready.items))
    examples, removed = visible_histories(examples, ready.preprocessing, ready.clean, ready.same_event, ready.own_split)
    negatives = ready.negatives.of(examples, touched)
    if not ready.timed:
        examples = examples.replace(time=np.full(len(examples), np.nan))
    return Shard(_tables(examples, negatives, ready.tasks), len(np.unique(examples.user)), removed)


def _are_timed(examples: Examples, path: str) -> bool:
    """Whether rows have times; those of sources without any are in the order of time."""
    missing = np.isnan(examples.time)
    if missing.any() and not missing.all():
        row = int(np.flatnonzero(missing)[0])
        raise ValueError(
            f"{path}: some rows have a timestamp and some have not, as {examples.where(row)}; give all one, or none"
        )
    return not missing.any()


def _with_searches(examples: Examples, query_of_item: Mapping[str, str]) -> Examples:
    """Rows of items that have a query once more, as searches; events are numbered by their position in the sequence."""
    names = examples.names
    order = np.lexsort((np.arange(len(examples)), examples.time, examples.user))
    positions = np.empty(len(examples), np.float64)
    positions[order] = np.arange(len(examples))
    examples = examples.replace(time=positions)
    query = np.asarray(
        [names.queries.add(query_of_item[item]) if item in query_of_item else UNKNOWN for item in names.items.names],
        np.int32,
    )[examples.targets.values]
    has_query = query != UNKNOWN
    searches = examples.take(has_query)
    task = np.full(len(searches), names.tasks.get("src"), np.int32)
    return Examples.join([examples, searches.replace(task=task, query=query[has_query])])


def _one_target_a_row(examples: Examples, preprocessing: Preprocessing) -> Examples:
    if preprocessing.multi_click == "first":
        return examples.replace(targets=examples.targets.first(1))
    lengths = examples.targets.lengths
    flat = Ragged(examples.targets.values, np.arange(len(examples.targets.values) + 1))
    return examples.take(np.repeat(np.arange(len(examples)), lengths)).replace(targets=flat)


def _renumbered(examples: Examples, items: list[Item], used_only: bool) -> tuple[Examples, list[Item], np.ndarray]:
    """Rows with items numbered by their position in the catalogue, the catalogue, and the new number of each old one.

    Args:
      examples: rows whose items are numbered in the order they were read.
      items: the catalogue.
      used_only: whether items that no row names leave the catalogue.
    """
    lists = {
        name: part
        for name in ("targets", "history", "negatives", "shown")
        if (part := getattr(examples, name)) is not None
    }
    names = examples.names.items
    if used_only:
        used = np.zeros(len(names), bool)
        for part in lists.values():
            used[part.values] = True
        items = [item for item in items if (number := names.get(item.item_id)) != UNKNOWN and used[number]]
    new_numbers = np.full(len(names), UNKNOWN, np.int32)
    for position, item in enumerate(items):
        if (number := names.get(item.item_id)) != UNKNOWN:
            new_numbers[number] = position
    return examples.replace(**{name: part.map(new_numbers) for name, part in lists.items()}), items, new_numbers


def _tables(examples: Examples, negatives: np.ndarray | None, tasks: tuple[str, ...]) -> dict[tuple[str, str], Table]:
    assert examples.history is not None
    names = examples.names
    users, queries = names.users.names, [*names.queries.names, ""]
    order = np.lexsort((np.arange(len(examples)), examples.time, examples.user))
    tables = {}
    # A table of rows against nothing has none; an untimed one has no times.
    timed = not np.isnan(examples.time).any()
    held_out = np.cumsum(examples.split != TRAIN) - 1
    for split, split_name in enumerate(SPLITS):
        for task in tasks:
            rows = order[(examples.split[order] == split) & (examples.task[order] == names.tasks.get(task))]
            history = examples.history.take(rows)
            tables[split_name, task] = Table(
                task=task,
                user_ids=[users[user] for user in examples.user[rows]],
                history=history.values.astype(np.int32),
                offsets=history.offsets,
                target=examples.targets.values[rows].astype(np.int32),
                queries=[queries[query] for query in examples.query[rows]],
                negatives=None if negatives is None or split == TRAIN else negatives[held_out[rows]],
                time=examples.time[rows] if timed else None,
            )
    return tables
