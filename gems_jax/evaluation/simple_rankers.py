"""The rankers without a model that a run is measured beside."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from gems_jax.data.dataset.tables import Dataset, Table
from gems_jax.evaluation import non_neural
from gems_jax.evaluation.non_neural import Scorer
from gems_jax.evaluation.ranking_summary import evaluate_scorer
from gems_jax.evaluation.transitions import new_by_task

# The key of the reason in the entry of a ranker that could not be measured.
MISSING = "missing"
_NOT_YET = "the evaluation ended before it was measured: evaluate again"


class _Log:
    """A dataset's training rows, and what several rankers need of them, made when it is first asked for."""

    def __init__(self, dataset: Dataset):
        self.items = dataset.items
        self.by_task = {task: dataset.tables["train", task] for task in dataset.tasks}
        self.training = list(self.by_task.values())

    @property
    def num_items(self) -> int:
        return len(self.items)

    @functools.cached_property
    def counts(self) -> np.ndarray:
        return non_neural.item_counts(self.training, self.num_items)

    def of_task(self, table: Table) -> Table:
        if table.task not in self.by_task:
            raise ValueError(f"there are no training rows of task {table.task!r}")
        return self.by_task[table.task]

    def titles_and_queries(self, table: Table) -> Scorer:
        documents = non_neural.titles_and_queries(self.items, self.of_task(table))
        return non_neural.bm25(documents, table, stem=True)


class Ranker(NamedTuple):
    """A ranker: which tables it can rank, and how it is made for one.

    Attributes:
      suits: whether it can rank a table.
      make: a table's scorer, from what training knows.
      group: its name in ``evaluate.baselines``.
      settings: of a ranker that was trained, by the table; JSON values, asked for when the table has been ranked.
    """

    suits: Callable[[Table], bool]
    make: Callable[[_Log, Table], Scorer]
    group: str
    settings: Callable[[Table], Mapping[str, Any]] | None = None


def _any(table: Table) -> bool:
    return True


def searches(table: Table) -> bool:
    """Whether a table's rows have queries."""
    return any(table.queries)


def _popular_among_matches(log: _Log, table: Table) -> Scorer:
    counts = non_neural.target_counts(log.of_task(table), log.num_items)
    return non_neural.with_popularity(log.titles_and_queries(table), counts)


RANKERS: Mapping[str, Ranker] = {
    "popularity": Ranker(_any, lambda log, _: non_neural.same_for_all(log.counts), "popularity"),
    "popularity, same task": Ranker(
        _any,
        lambda log, table: non_neural.same_for_all(non_neural.target_counts(log.of_task(table), log.num_items)),
        "popularity",
    ),
    "co-occurrence": Ranker(
        lambda table: not searches(table),
        lambda log, table: non_neural.co_occurrence(log.training, table, log.num_items),
        "cooccurrence",
    ),
    "BM25": Ranker(searches, lambda log, table: non_neural.bm25(non_neural.titles(log.items), table), "bm25"),
    "BM25, stemmed": Ranker(
        searches, lambda log, table: non_neural.bm25(non_neural.titles(log.items), table, stem=True), "bm25"
    ),
    "BM25, titles and queries": Ranker(searches, _Log.titles_and_queries, "bm25"),
    "BM25, titles and queries, popularity": Ranker(searches, _popular_among_matches, "bm25"),
}


def simple_rankers(
    dataset: Dataset,
    tables: Mapping[str, Table],
    samples: int,
    rankers: Mapping[str, Ranker] = RANKERS,
    removed: Collection[int] = (),
    new: Mapping[str, np.ndarray] | None = None,
) -> dict[str, dict[str, Any]]:
    """Measures each ranker on each task that it suits, apart: what one cannot do is said in its place.

    Popularity (of all tasks, and of the task's targets), co-occurrence of items (from the history; tasks without
    queries) and, where there are queries, BM25 of titles by words and by stems, BM25 of titles and the training
    queries that led to an item, by stems, and the same with the task's popularity.

    Args:
      dataset: whose training rows they know.
      tables: task to the rows that are measured, against their negatives or, without any, the whole catalogue.
      samples: bootstrap resamples of the confidence intervals.
      rankers: by name.
      removed: items that are left out of the whole catalogue.
      new: `new_by_task` of the same tables, from callers that have it.

    Returns:
      Ranker to task to its metrics, as of ``summarise``, or ``{"missing": why}``; of a ranker that was trained with its
      ``"settings"``.
    """
    log = _Log(dataset)
    new = new_by_task(dataset, tables) if new is None else new
    return {
        name: {
            task: _measured(ranker, log, table, samples, new.get(task), removed)
            for task, table in tables.items()
            if ranker.suits(table)
        }
        for name, ranker in rankers.items()
    }


def not_measured(tables: Mapping[str, Table], rankers: Mapping[str, Ranker] = RANKERS) -> dict[str, dict[str, Any]]:
    """The result of `simple_rankers` of the same tables before it has measured anything."""
    return {
        name: {task: {MISSING: _NOT_YET} for task, table in tables.items() if ranker.suits(table)}
        for name, ranker in rankers.items()
    }


def missing_lines(rankers: Mapping[str, Mapping[str, Any]], label: Callable[[str], str] = str) -> list[str]:
    """A line for each ranker and task that could not be measured, with the reason.

    Args:
      rankers: as of `simple_rankers`.
      label: names a task.

    Example:
      >>> missing_lines({"BM25": {"src": {"missing": "no title has a word"}, "rec": {"hit@10": 0.5}}})
      ['BM25, src: not measured (no title has a word)']
    """
    return [
        f"{name}, {label(task)}: not measured ({entry[MISSING]})"
        for name, tasks in rankers.items()
        for task, entry in tasks.items()
        if isinstance(entry, Mapping) and MISSING in entry
    ]


def settings_lines(rankers: Mapping[str, Mapping[str, Any]], label: Callable[[str], str] = str) -> list[str]:
    """A line for each ranker and task that was trained for the evaluation, with its settings and how it went.

    Args:
      rankers: as of `simple_rankers`.
      label: names a task.

    Example:
      >>> settings_lines({"SASRec": {"rec": {"hit@10": 0.5, "settings": {"width": 64, "best_epoch": 7, "rate": 1e-3}}}})
      ['SASRec, rec: width 64, best epoch 7, rate 0.001']
    """

    def shown(value: Any) -> str:
        return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)

    return [
        f"{name}, {label(task)}: "
        + ", ".join(f"{key.replace('_', ' ')} {shown(value)}" for key, value in entry["settings"].items())
        for name, tasks in rankers.items()
        for task, entry in tasks.items()
        if isinstance(entry, Mapping) and "settings" in entry
    ]


def _measured(
    ranker: Ranker, log: _Log, table: Table, samples: int, new: np.ndarray | None, removed: Collection[int]
) -> dict[str, Any]:
    # Anything: whatever a ranker beside the model cannot do must not cost the model's results.
    try:
        scorer = ranker.make(log, table)
        found = evaluate_scorer(table, scorer, log.num_items, samples=samples, new=new, removed=removed)
        return found if ranker.settings is None else found | {"settings": dict(ranker.settings(table))}
    except MemoryError as error:
        return {MISSING: f"there is not enough memory for it ({error})" if str(error) else "there is not enough memory"}
    except Exception as error:
        return {MISSING: f"{type(error).__name__}: {error}"}
