"""Rankers without a model: popularity, items taken together, words in common. What a model has to beat."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence

import numpy as np

from gems_jax.data.tables import Item, Table

# Plain words and numbers: no stop words, no stemming.
_WORD = re.compile(r"[a-z0-9]+")


def popularity_scores(training: Sequence[Table], candidates: np.ndarray, num_items: int) -> np.ndarray:
    """How often each candidate was taken in training, float32 `[R, C]`.

    Args:
        training: training tables of one or more tasks; an event that gives a row in several counts once.
        candidates: item numbers, int `[R, C]`.
        num_items: size of the catalogue.
    """
    counts = np.zeros(num_items, np.float32)
    for events in _training_events(training).values():
        counts[list(events)] += 1
    return counts[candidates]


def co_occurrence_scores(training: Sequence[Table], table: Table, candidates: np.ndarray, num_items: int) -> np.ndarray:
    """In how many training users a candidate stands beside the items of the row's history, float32 `[R, C]`.

    The count of a pair is divided by the root of the popularity of both (cosine) and summed over the history;
    popularity breaks ties.

    Args:
        training: training tables.
        table: `R` rows, whose histories are used.
        candidates: item numbers, int `[R, C]`.
        num_items: size of the catalogue.
    """
    together = np.zeros((num_items, num_items), np.float32)
    for events in _training_events(training).values():
        items = list(events)
        together[np.ix_(items, items)] += 1
    popularity = np.diagonal(together).copy()
    root = np.sqrt(np.maximum(popularity, 1.0))
    np.fill_diagonal(together, 0.0)
    together /= root[:, None] * root[None, :]
    together += 1e-6 * popularity
    scores = [together[table.history_of(row)][:, candidates[row]].sum(axis=0) for row in range(len(table))]
    return np.stack(scores).astype(np.float32)


def bm25_scores(items: Sequence[Item], table: Table, candidates: np.ndarray, stem: bool = False) -> np.ndarray:
    """BM25 of the row's query against each candidate's title and text (k1 1.5, b 0.75), float32 `[R, C]`.

    Args:
        items: the catalogue.
        table: `R` rows with queries.
        candidates: item numbers, int `[R, C]`.
        stem: whether English endings are cut off (Porter's second stemmer), so that "filters" finds "filter".
    """
    import bm25s

    words = _stemmed if stem else _words
    retriever = bm25s.BM25()
    retriever.index([words(item.search_text) for item in items], show_progress=False)
    by_query: dict[str, np.ndarray] = {}
    for query in set(table.queries):
        known = [word for word in words(query) if word in retriever.vocab_dict]
        by_query[query] = retriever.get_scores(known) if known else np.zeros(len(items), np.float32)
    return np.stack([by_query[query][candidates[row]] for row, query in enumerate(table.queries)])


def ranked_relevance(scores: np.ndarray, seed: int, target_column: int = 0) -> np.ndarray:
    """Where the target stands when candidates are ordered by score, ties in a random order: int8 0/1 `[R, C]`.

    Example:
        >>> ranked_relevance(np.array([[1.0, 2.0, 0.0], [3.0, 2.0, 1.0]]), seed=0)
        array([[0, 1, 0],
               [1, 0, 0]], dtype=int8)

    Args:
        scores: `[R, C]`, one column of which is the target's.
        seed: of the order of ties.
        target_column: which one.
    """
    shuffled = np.random.default_rng(seed).random(scores.shape)
    order = np.lexsort((shuffled, -scores), axis=1)
    return (order == target_column).astype(np.int8)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _stemmed(text: str) -> list[str]:
    stem = _stemmer()
    return [stem(word) for word in _words(text)]


@functools.cache
def _stemmer() -> Callable[[str], str]:
    import snowballstemmer

    return functools.cache(snowballstemmer.stemmer("english").stemWord)


def _training_events(training: Sequence[Table]) -> dict[str, dict[int, None]]:
    """User to the items taken in training, each once, in order of appearance."""
    events: dict[str, dict[int, None]] = {}
    for table in training:
        for row, user in enumerate(table.user_ids):
            taken = events.setdefault(user, {})
            taken.update(dict.fromkeys(table.history_of(row).tolist()))
            taken[int(table.target[row])] = None
    return events
