"""The rankers of `evaluate.baselines`: those without a model, and those that are trained for the evaluation."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gems_jax.config.evaluate import EvaluateConfig
from gems_jax.config.rankers import SasrecConfig, TigerConfig, TwoTowerConfig
from gems_jax.data.dataset.tables import Dataset, Table
from gems_jax.evaluation.non_neural import Scorer
from gems_jax.evaluation.simple_rankers import RANKERS, Ranker, searches
from gems_jax.neural_rankers.kept import Keep, made_of
from gems_jax.neural_rankers.sasrec_training import sasrec_scorer, train_sasrec
from gems_jax.neural_rankers.tiger import TrainedTiger, tiger_scorer, train_tiger
from gems_jax.neural_rankers.two_tower import TextTowers, train_two_tower, two_tower_scorer

# Texts to vectors float32 [n, d].
Reader = Callable[[Sequence[str]], np.ndarray]


def baselines(
    options: EvaluateConfig,
    dataset: Dataset,
    read: Reader | None = None,
    removed: Collection[int] = (),
    folder: Path | None = None,
) -> dict[str, Ranker]:
    """The rankers that ``evaluate.baselines`` asks for, by name, in a fixed order.

    Args:
      options: of the evaluation.
      dataset: whose training and validation rows they know.
      read: vectors of texts, by the base model in a run: what two towers rank by and TIGER's identifiers are made of.
      removed: items that are not ranked in the whole catalogue.
      folder: where those that are trained are kept, and found again for the same rows, texts and settings.

    Example:
      >>> options = EvaluateConfig(baselines=("bm25", "popularity"))
      >>> list(baselines(options, Dataset("shop", [], {})))[:3]
      ['popularity', 'popularity, same task', 'BM25']
    """
    texts = _Texts(dataset, read)
    neural = {
        "SASRec": _sasrec(dataset, options.sasrec, folder),
        "TIGER": _tiger(dataset, options.tiger, texts, removed, folder),
        "two-tower, base model": Ranker(searches, lambda _, table: _as_read(texts, table), "two-tower"),
        "two-tower, trained": _two_tower(dataset, options.two_tower, texts, folder),
    }
    return {name: ranker for name, ranker in {**RANKERS, **neural}.items() if ranker.group in options.baselines}


class _Texts:
    """Vectors of the dataset's texts, read when they are first asked for."""

    def __init__(self, dataset: Dataset, read: Reader | None):
        self._dataset, self._read = dataset, read

    @functools.cached_property
    def vectors(self) -> TextTowers:
        if self._read is None:
            raise ValueError("it reads texts with the base model: give it")
        return TextTowers(self._read, self._dataset.items)


def _trained(dataset: Dataset, train: Callable[[Table, Table], Any]) -> Callable[[Table], Any]:
    """What ``train`` makes of the training and the validation rows of a table's task, once for all its tables."""

    @functools.cache
    def of_task(task: str) -> Any:
        return train(dataset.table("train", task), dataset.table("valid", task))

    return lambda table: of_task(table.task)


def _kept(folder: Path | None, name: str, task: str, made: Callable[[], str]) -> Keep | None:
    return None if folder is None else Keep(folder / f"{name}-{task}", made())


def _recommends(table: Table) -> bool:
    return not searches(table)


def _sasrec(dataset: Dataset, options: SasrecConfig, folder: Path | None) -> Ranker:
    count = len(dataset.items)

    def train(train: Table, valid: Table) -> Any:
        keep = _kept(folder, "sasrec", train.task, lambda: made_of(options, (train, valid), count))
        return train_sasrec(train, valid, count, options, progress=True, keep=keep)

    of = _trained(dataset, train)

    def make(_: Any, table: Table) -> Scorer:
        return sasrec_scorer(of(table).model, table, options.max_length)

    return Ranker(_recommends, make, "sasrec", lambda table: dict(of(table).facts))


def _tiger(
    dataset: Dataset, options: TigerConfig, texts: _Texts, removed: Collection[int], folder: Path | None
) -> Ranker:
    def train(train: Table, valid: Table) -> TrainedTiger:
        items = texts.vectors.items
        known = (items, np.array(sorted(removed), np.int64))
        keep = _kept(folder, "tiger", train.task, lambda: made_of(options, (train, valid), len(items), known))
        return train_tiger(items, train, valid, options, removed, progress=True, keep=keep)

    of = _trained(dataset, train)

    def make(_: Any, table: Table) -> Scorer:
        return tiger_scorer(of(table), table, options, progress=True)

    return Ranker(_recommends, make, "tiger", lambda table: dict(of(table).facts))


def _as_read(texts: _Texts, table: Table) -> Scorer:
    return two_tower_scorer(texts.vectors.queries(table), texts.vectors.items)


def _two_tower(dataset: Dataset, options: TwoTowerConfig, texts: _Texts, folder: Path | None) -> Ranker:
    def train(train: Table, valid: Table) -> Any:
        towers = texts.vectors

        def made() -> str:
            known = (towers.items, towers.queries(train), towers.queries(valid))
            return made_of(options, (train, valid), len(towers.items), known)

        keep = _kept(folder, "two-tower-trained", train.task, made)
        return train_two_tower(towers, train, valid, options, progress=True, keep=keep)

    of = _trained(dataset, train)

    def make(_: Any, table: Table) -> Scorer:
        of_queries, of_items = of(table)[0]
        return two_tower_scorer(texts.vectors.queries(table) @ of_queries, texts.vectors.items @ of_items)

    return Ranker(searches, make, "two-tower-trained", lambda table: dict(of(table)[1]))
