"""The rankers of `evaluate.baselines`: those without a model, and those that are trained for the evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gems_jax.config.rankers import SasrecConfig
from gems_jax.data.dataset.tables import Dataset, Table
from gems_jax.evaluation.non_neural import Scorer
from gems_jax.evaluation.simple_rankers import RANKERS, Ranker, searches


def baselines(names: Sequence[str], dataset: Dataset, sasrec: SasrecConfig) -> dict[str, Ranker]:
    """Rankers by name, in a fixed order.

    Args:
      names: of ``evaluate.baselines``.
      dataset: whose training and validation rows they know.
      sasrec: settings of SASRec.

    Example:
      >>> list(baselines(["bm25", "popularity"], Dataset("shop", [], {}), SasrecConfig()))[:3]
      ['popularity', 'popularity, same task', 'BM25']
    """
    neural = {"SASRec": _Sasrec(dataset, sasrec).ranker()}
    return {name: ranker for name, ranker in {**RANKERS, **neural}.items() if ranker.group in names}


class _Sasrec:
    """SASRec of each task, trained once for all its tables."""

    def __init__(self, dataset: Dataset, options: SasrecConfig):
        self._dataset, self._options = dataset, options
        self._trained: dict[str, Any] = {}

    def ranker(self) -> Ranker:
        return Ranker(lambda table: not searches(table), lambda _, table: self._scorer(table), "sasrec", self._settings)

    def _scorer(self, table: Table) -> Scorer:
        # Flax takes a second to load, which no other ranker needs.
        from gems_jax.neural_rankers.sasrec_training import sasrec_scorer, train_sasrec

        if table.task not in self._trained:
            rows = (self._dataset.table(split, table.task) for split in ("train", "valid"))
            self._trained[table.task] = train_sasrec(*rows, len(self._dataset.items), self._options, progress=True)
        return sasrec_scorer(self._trained[table.task].model, table, self._options.max_length)

    def _settings(self, table: Table) -> Mapping[str, Any]:
        return dict(self._trained[table.task].facts)
