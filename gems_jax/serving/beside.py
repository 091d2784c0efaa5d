"""What rankers without a model answer to the same request, to be looked at beside the model's answer."""

import functools
from typing import Any

import numpy as np

from gems_jax.evaluation.non_neural import bm25_index, item_counts, titles
from gems_jax.serving.catalogue import Catalogue, Ranking


class Beside:
    """Popularity and BM25 of a catalogue, made when they are first asked.

    Args:
      catalogue: whose training rows are counted and whose titles are searched.
    """

    def __init__(self, catalogue: Catalogue):
        self._dataset, self._removed = catalogue.dataset, sorted(catalogue.removed)

    def rank(self, ranking: Ranking) -> dict[str, list[dict[str, Any]]]:
        """Name of a ranker to its items, best first, JSON values; BM25 only where there is a query, and items it finds.

        Of equal scores the first item of the catalogue comes first.
        """
        allowed = np.full(len(self._dataset.items), not ranking.keeps)
        allowed[ranking.listed] = ranking.keeps
        allowed[self._removed] = False
        found = {"popularity": self._popularity}
        if ranking.query:
            found["BM25"] = self._bm25(ranking.query)
        return {name: self._best(np.where(allowed, scores, 0.0), ranking.k) for name, scores in found.items()}

    def _best(self, scores: np.ndarray, k: int) -> list[dict[str, Any]]:
        order = np.argsort(-scores, kind="stable")[:k]
        chosen = [(self._dataset.items[number], float(scores[number])) for number in order.tolist()]
        return [{"item_id": item.item_id, "title": item.title, "score": score} for item, score in chosen if score > 0]

    @functools.cached_property
    def _popularity(self) -> np.ndarray:
        training = [self._dataset.tables["train", task] for task in self._dataset.tasks]
        return item_counts(training, len(self._dataset.items))

    @functools.cached_property
    def _bm25(self) -> Any:
        return bm25_index(titles(self._dataset.items), stem=True)
