"""The rankers of `evaluate.baselines`: those without a model, and those that are trained for the evaluation."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from gems_jax.config.rankers import SasrecConfig, TigerConfig, TwoTowerConfig
from gems_jax.config.run import EvaluateConfig
from gems_jax.data.dataset.tables import Dataset, Table
from gems_jax.evaluation.non_neural import Scorer
from gems_jax.evaluation.simple_rankers import RANKERS, Ranker, searches
from gems_jax.neural_rankers.sasrec_training import Trained, sasrec_scorer, train_sasrec
from gems_jax.neural_rankers.tiger import TrainedTiger, tiger_scorer, train_tiger
from gems_jax.neural_rankers.two_tower import TextTowers, train_two_tower, two_tower_scorer

# Texts to vectors float32 [n, d].
Reader = Callable[[Sequence[str]], np.ndarray]


def baselines(
    options: EvaluateConfig, dataset: Dataset, read: Reader | None = None, removed: Collection[int] = ()
) -> dict[str, Ranker]:
    """The rankers that ``evaluate.baselines`` asks for, by name, in a fixed order.

    Args:
      options: of the evaluation.
      dataset: whose training and validation rows they know.
      read: vectors of texts, by the base model in a run: what two towers rank by and TIGER's identifiers are made of.
      removed: items that are not ranked in the whole catalogue.

    Example:
      >>> options = EvaluateConfig(baselines=("bm25", "popularity"))
      >>> list(baselines(options, Dataset("shop", [], {})))[:3]
      ['popularity', 'popularity, same task', 'BM25']
    """
    texts = _Texts(dataset, read)
    towers = _TwoTower(dataset, options.two_tower, texts)
    neural = {
        "SASRec": _Sasrec(dataset, options.sasrec).ranker(),
        "TIGER": _Tiger(dataset, options.tiger, texts, removed).ranker(),
        "two-tower, base model": Ranker(searches, lambda _, table: towers.as_read(table), "two-tower"),
        "two-tower, trained": Ranker(
            searches, lambda _, table: towers.trained(table), "two-tower-trained", towers.settings
        ),
    }
    return {name: ranker for name, ranker in {**RANKERS, **neural}.items() if ranker.group in options.baselines}


class _Sasrec:
    """SASRec of each task, trained once for all its tables."""

    def __init__(self, dataset: Dataset, options: SasrecConfig):
        self._dataset, self._options = dataset, options
        self._trained: dict[str, Trained] = {}

    def ranker(self) -> Ranker:
        return Ranker(lambda table: not searches(table), lambda _, table: self._scorer(table), "sasrec", self._settings)

    def _scorer(self, table: Table) -> Scorer:
        if table.task not in self._trained:
            train, valid = (self._dataset.table(split, table.task) for split in ("train", "valid"))
            self._trained[table.task] = train_sasrec(
                train, valid, len(self._dataset.items), self._options, progress=True
            )
        return sasrec_scorer(self._trained[table.task].model, table, self._options.max_length)

    def _settings(self, table: Table) -> Mapping[str, Any]:
        return dict(self._trained[table.task].facts)


class _Texts:
    """Vectors of the dataset's texts, read when they are first asked for."""

    def __init__(self, dataset: Dataset, read: Reader | None):
        self._dataset, self._read = dataset, read

    @functools.cached_property
    def vectors(self) -> TextTowers:
        if self._read is None:
            raise ValueError("it reads texts with the base model: give it")
        return TextTowers(self._read, self._dataset.items)


class _Tiger:
    """TIGER of each task, trained once for all its tables."""

    def __init__(self, dataset: Dataset, options: TigerConfig, texts: _Texts, removed: Collection[int]):
        self._dataset, self._options, self._texts, self._removed = dataset, options, texts, removed
        self._trained: dict[str, TrainedTiger] = {}

    def ranker(self) -> Ranker:
        return Ranker(lambda table: not searches(table), lambda _, table: self._scorer(table), "tiger", self._settings)

    def _scorer(self, table: Table) -> Scorer:
        if table.task not in self._trained:
            train, valid = (self._dataset.table(split, table.task) for split in ("train", "valid"))
            self._trained[table.task] = train_tiger(
                self._texts.vectors.items, train, valid, self._options, self._removed, progress=True
            )
        return tiger_scorer(self._trained[table.task], table, self._options, progress=True)

    def _settings(self, table: Table) -> Mapping[str, Any]:
        return dict(self._trained[table.task].facts)


class _TwoTower:
    """Two towers of the base model: its vectors are made once, a task's projections trained once for all its tables."""

    def __init__(self, dataset: Dataset, options: TwoTowerConfig, texts: _Texts):
        self._dataset, self._options, self._texts = dataset, options, texts
        self._trained: dict[str, Any] = {}

    @property
    def _towers(self) -> TextTowers:
        return self._texts.vectors

    def as_read(self, table: Table) -> Scorer:
        return two_tower_scorer(self._towers.queries(table), self._towers.items)

    def trained(self, table: Table) -> Scorer:
        if table.task not in self._trained:
            train, valid = (self._dataset.table(split, table.task) for split in ("train", "valid"))
            self._trained[table.task] = train_two_tower(self._towers, train, valid, self._options, progress=True)
        of_queries, of_items = self._trained[table.task][0]
        return two_tower_scorer(self._towers.queries(table) @ of_queries, self._towers.items @ of_items)

    def settings(self, table: Table) -> Mapping[str, Any]:
        return dict(self._trained[table.task][1])
