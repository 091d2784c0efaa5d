"""Rankers without a model: popularity, items of the same users, words in common. A model has to beat them.

Each is a `Scorer`: it gives some rows' scores at a time, of their candidates or of the whole catalogue, so that memory
grows with neither the square of the catalogue nor the number of rows.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from gems_jax.data.dataset.tables import Item, Table
from gems_jax.data.text.words import search_terms

# Numbers held at a time beside what is returned.
BLOCK = 1 << 24


class Scorer(Protocol):
    """Scores of the items for some rows of a table."""

    def __call__(self, rows: np.ndarray, candidates: np.ndarray | None) -> np.ndarray:
        """float32 ``[r, C]``, or ``[r, N]``, larger is better.

        Args:
          rows: int ``[r]``, rows of the table.
          candidates: item numbers ``[r, C]``; None: all N items.
        """
        ...  # pragma: no cover


def same_for_all(scores: np.ndarray) -> Scorer:
    """The same scores of the N items in every row, such as their popularity.

    Args:
      scores: ``[N]``.
    """

    def score(rows: np.ndarray, candidates: np.ndarray | None) -> np.ndarray:
        return np.tile(scores, (len(rows), 1)) if candidates is None else scores[candidates]

    return score


def item_counts(training: Sequence[Table], num_items: int) -> np.ndarray:
    """How many training users interacted with each item, as a target or in a history of any task, float32 ``[N]``.

    Args:
      training: training tables.
      num_items: size of the catalogue.
    """
    return np.asarray(_interactions(training, num_items).sum(axis=0), np.float32).ravel()


def target_counts(table: Table, num_items: int) -> np.ndarray:
    """How often each item is the target of a row, float32 ``[N]``: what is searched for is not what is browsed.

    Args:
      table: training rows of a task.
      num_items: size of the catalogue.
    """
    return np.bincount(table.target, minlength=num_items).astype(np.float32)


def co_occurrence(training: Sequence[Table], table: Table, num_items: int) -> Scorer:
    """In how many training users an item stands beside those of the row's history.

    ``sum_h n(h, c) / sqrt(n(h) n(c)) + 1e-6 n(c)`` over the items ``h`` of the history other than the candidate ``c``,
    where ``n`` counts users (cosine; popularity breaks ties).

    Args:
      training: training tables.
      table: rows, whose histories are used.
      num_items: size of the catalogue.
    """
    import scipy.sparse as sp

    users_items = _interactions(training, num_items)
    items_users = users_items.T.tocsr()
    counts = np.asarray(users_items.sum(axis=0), np.float32).ravel()
    root = np.sqrt(np.maximum(counts, 1.0))
    # Products that an item's column of co-occurrences takes.
    work = np.asarray(items_users @ users_items.sum(axis=1)).ravel()

    def block(rows: np.ndarray, candidates: np.ndarray | None) -> np.ndarray:
        lengths = np.diff(table.offsets)[rows]
        history = np.concatenate([table.history_of(row) for row in rows.tolist()])
        row_of = np.repeat(np.arange(len(rows)), lengths)
        known, column = np.unique(history, return_inverse=True)
        together = (items_users[known] @ users_items).tocsr()
        # An item does not speak for itself.
        entry_of = np.repeat(known, np.diff(together.indptr))
        together.data = np.where(together.indices == entry_of, 0.0, together.data).astype(np.float32)
        together = sp.diags_array(1.0 / root[known]) @ together @ sp.diags_array(1.0 / root)
        weights = sp.csr_array((np.ones(len(history), np.float32), (row_of, column)), shape=(len(rows), len(known)))
        similarity = (weights @ together).tocsr()
        ties = 1e-6 * lengths[:, None].astype(np.float32)
        if candidates is None:
            return np.asarray(similarity.toarray() + ties * counts, np.float32)
        row_index = np.repeat(np.arange(len(rows)), candidates.shape[1])
        chosen = np.asarray(similarity[row_index, candidates.ravel()]).reshape(candidates.shape)
        return np.asarray(chosen + ties * counts[candidates], np.float32)

    def score(rows: np.ndarray, candidates: np.ndarray | None) -> np.ndarray:
        of_rows = np.asarray([work[table.history_of(row)].sum() for row in rows.tolist()])
        parts = [
            block(rows[part], None if candidates is None else candidates[part]) for part in _blocks(of_rows, BLOCK)
        ]
        return np.concatenate(parts)

    return score


def bm25_index(documents: Sequence[str], stem: bool = False) -> Callable[[str], np.ndarray]:
    """BM25 of any query against all documents (k1 1.5, b 0.75): float32 ``[N]``, 0 without a word in common.

    Args:
      documents: a text an item, see `titles` and `titles_and_queries`.
      stem: whether English endings are cut off (Porter's second stemmer), so that "filters" finds "filter".

    Raises:
      ValueError: no document holds a word.
    """
    import bm25s

    # It logs every step of its own, at a level that it sets when it is imported.
    logging.getLogger("bm25s").setLevel(logging.WARNING)
    terms = _stemmed if stem else search_terms
    retriever = bm25s.BM25()
    # One object for all occurrences of a word.
    seen: dict[str, str] = {}
    words = [[seen.setdefault(word, word) for word in terms(document)] for document in documents]
    if not seen:
        raise ValueError("no title of the catalogue has a letter or a number: there are no words to search")
    retriever.index(words, show_progress=False)

    def score(query: str) -> np.ndarray:
        known = [word for word in terms(query) if word in retriever.vocab_dict]
        return np.asarray(retriever.get_scores(known) if known else np.zeros(len(documents)), np.float32)

    return score


def bm25(documents: Sequence[str], table: Table, stem: bool = False) -> Scorer:
    """BM25 of the row's query against each item's document, see `bm25_index`.

    Args:
      documents: a text an item.
      table: rows with queries.
      stem: as there.

    Raises:
      ValueError: no document holds a word.
    """
    scores_of = bm25_index(documents, stem)

    def score(rows: np.ndarray, candidates: np.ndarray | None) -> np.ndarray:
        width = len(documents) if candidates is None else candidates.shape[1]
        result = np.zeros((len(rows), width), np.float32)
        by_query: dict[str, list[int]] = {}
        for index, row in enumerate(rows.tolist()):
            by_query.setdefault(table.queries[row], []).append(index)
        for query, indices in by_query.items():
            values = scores_of(query)
            result[indices] = values if candidates is None else values[candidates[indices]]
        return result

    return score


def titles(items: Sequence[Item]) -> list[str]:
    """Each item's title and text."""
    return [item.search_text for item in items]


def titles_and_queries(items: Sequence[Item], training: Table) -> list[str]:
    """Each item's title and text, and the queries that led to it in training: what a log of queries knows of it.

    Args:
      items: the catalogue.
      training: training rows of a task with queries.

    Example:
      >>> from gems_jax.data.dataset.tables import Row
      >>> log = Table.from_rows("src", [Row("ann", [], 0, "sofa"), Row("bob", [], 0, "bed"), Row("cy", [], 0, "bed")])
      >>> titles_and_queries([Item("a", "Couch"), Item("b", "Lamp")], log)
      ['Couch sofa bed bed', 'Lamp']
    """
    texts = [[item.search_text] for item in items]
    for item, query in zip(training.target.tolist(), training.queries, strict=True):
        texts[item].append(query)
    return [" ".join(parts) for parts in texts]


def with_popularity(scorer: Scorer, counts: np.ndarray) -> Scorer:
    """Another's scores plus ``log(1 + n)``: of two items with the same words the one with more interactions.

    Args:
      scorer: its scores are zero or larger.
      counts: ``n``, interactions with each item, ``[N]``.
    """
    extra = np.log1p(counts).astype(np.float32)

    def score(rows: np.ndarray, candidates: np.ndarray | None) -> np.ndarray:
        return scorer(rows, candidates) + (extra if candidates is None else extra[candidates])

    return score


def score_blocks(rows: int, width: int) -> Iterator[np.ndarray]:
    """All rows in order, so many at a time that `BLOCK` numbers hold ``width`` for each of them."""
    step = max(1, BLOCK // max(1, width))
    for start in range(0, rows, step):
        yield np.arange(start, min(start + step, rows))


def popularity_scores(training: Sequence[Table], candidates: np.ndarray, num_items: int) -> np.ndarray:
    """`item_counts` of candidates, float32 ``[R, C]``: how popular they are.

    Args:
      training: training tables of one or more tasks.
      candidates: item numbers, int ``[R, C]``.
      num_items: size of the catalogue.
    """
    return item_counts(training, num_items)[candidates]


def co_occurrence_scores(training: Sequence[Table], table: Table, candidates: np.ndarray, num_items: int) -> np.ndarray:
    """`co_occurrence` of candidates, float32 ``[R, C]``.

    Args:
      training: training tables.
      table: ``R`` rows, whose histories are used.
      candidates: item numbers, int ``[R, C]``.
      num_items: size of the catalogue.
    """
    return co_occurrence(training, table, num_items)(np.arange(len(table)), candidates)


def bm25_scores(items: Sequence[Item], table: Table, candidates: np.ndarray, stem: bool = False) -> np.ndarray:
    """`bm25` of candidates' titles and texts, float32 ``[R, C]``.

    Args:
      items: the catalogue.
      table: ``R`` rows with queries.
      candidates: item numbers, int ``[R, C]``.
      stem: as there.
    """
    return bm25(titles(items), table, stem)(np.arange(len(table)), candidates)


def _blocks(sizes: np.ndarray, most: int) -> Iterator[slice]:
    """Consecutive rows whose sizes add up to ``most``, or single ones that are larger."""
    start, total = 0, 0
    for index, size in enumerate(sizes.tolist()):
        if index > start and total + size > most:
            yield slice(start, index)
            start, total = index, 0
        total += size
    yield slice(start, len(sizes))


def _interactions(training: Sequence[Table], num_items: int) -> Any:
    """Items of each training user, as targets or in histories: sparse float32 ``[users, N]`` of ones."""
    import scipy.sparse as sp

    numbers: dict[str, int] = {}
    users, items = [], []
    for table in training:
        user = np.fromiter((numbers.setdefault(name, len(numbers)) for name in table.user_ids), np.int64, len(table))
        users += [user, np.repeat(user, np.diff(table.offsets))]
        items += [table.target, table.history]
    pairs = np.unique(np.concatenate(users) * num_items + np.concatenate(items)) if users else np.zeros(0, np.int64)
    user, item = np.divmod(pairs, num_items)
    ones = np.ones(len(pairs), np.float32)
    return sp.csr_array((ones, (user, item)), shape=(max(1, len(numbers)), num_items))


def _stemmed(text: str) -> list[str]:
    stem = _stemmer()
    return [stem(word) for word in search_terms(text)]


@functools.cache
def _stemmer() -> Callable[[str], str]:
    import snowballstemmer

    return functools.cache(snowballstemmer.stemmer("english").stemWord)
