"""From rankings of a table's rows to the numbers that are reported."""

import zlib
from collections.abc import Collection
from typing import Any

import numpy as np

from gems_jax.data.dataset.tables import Table
from gems_jax.data.preparation.few_candidates import CUTOFFS
from gems_jax.evaluation.bootstrap import bootstrap_intervals
from gems_jax.evaluation.non_neural import Scorer, score_blocks
from gems_jax.ranking import metrics
from gems_jax.ranking.ties import Ties, expected

METRICS = ("hit", "ndcg", "mrr", "map")
# The released code's metrics of the same names; see `gems_jax.ranking.metrics`.
RELEASED_METRICS = tuple(f"released_{name}" for name in METRICS)


def shuffled_candidates(table: Table, seed: int) -> np.ndarray:
    """Each row's target and negatives in an order of its own, so that no tie favours the target.

    Args:
      table: R rows with C negatives each.
      seed: of the order, which depends on nothing else but the task's name.

    Returns:
      Columns of ``table.candidates()``, int ``[R, 1 + C]``.
    """
    rng = np.random.default_rng([seed, zlib.crc32(table.task.encode())])
    width = 1 + (0 if table.negatives is None else table.negatives.shape[1])
    return rng.permuted(np.tile(np.arange(width), (len(table), 1)), axis=1)


def summarise(
    table: Table,
    ranked: np.ndarray,
    *,
    samples: int = 1000,
    seed: int = 0,
    candidates: int | None = None,
    new: np.ndarray | None = None,
    ties: Ties | None = None,
) -> dict[str, Any]:
    """Metrics of rankings, with 95 % confidence intervals over users.

    Args:
      table: R rows, one right item each.
      ranked: item numbers ``[R, k]``, best first, -1 where there is none. A cut-off above k is left out: what was not
        kept cannot be counted.
      samples: bootstrap resamples; 0 leaves the intervals out.
      seed: of the resamples.
      candidates: how many items each row's target was ranked among, itself included; ``None``: it and its negatives.
      new: bool ``[R]``, rows that are measured apart as well, see `gems_jax.evaluation.transitions.new_transitions`.
      ties: of rankings in which items share identifiers: metrics are then means over all orders of items that tie, see
        `gems_jax.ranking.ties.expected`.

    Returns:
      ``"hit@5"``, ``"ndcg@5"``, ``"mrr@5"``, ``"map@5"`` and the same at 10 and 20, each with ``"..._ci"`` as
      ``[low, high]``; ``"released_hit@5"`` and so on, the released code's variants, which differ where a row has
      several right items; the numbers of ``"rows"``, ``"users"`` and, where it is known, ``"candidates"``; with
      ``new``, ``"new_transition"``: hit, ndcg and the numbers of those rows alone; with ``ties``, ``"tied"``: the mean
      number of items that tie with a row's target, itself included.

    Raises:
      ValueError: if there is not one ranking a row, or less than 5 results were kept of each.

    Example:
      >>> from gems_jax.data.dataset.tables import Row
      >>> table = Table.from_rows("rec", [Row("ann", [0], 3)])
      >>> summary = summarise(table, np.array([[1, 3, 2, 0, 4]]), samples=0)
      >>> summary["mrr@5"], summary["released_mrr@5"], "hit@10" in summary
      (0.5, 0.5, False)
    """
    ranked = np.asarray(ranked)
    if len(ranked) != len(table) or not len(table):
        raise ValueError(f"task {table.task!r}: {len(ranked)} rankings for {len(table)} rows; one each is needed")
    if ranked.ndim != 2 or ranked.shape[1] < CUTOFFS[0]:
        raise ValueError(
            f"task {table.task!r}: rankings have shape {ranked.shape}, and the first {CUTOFFS[0]} results of each row "
            f"are measured: keep at least k={CUTOFFS[0]}"
        )
    relevance = metrics.relevance(ranked, table.target[:, None])
    ones = np.ones(len(table), np.int64)
    users = np.asarray(table.user_ids)
    cutoffs = [k for k in CUTOFFS if k <= ranked.shape[1]]
    if ties is None:
        values = {f"{name}@{k}": getattr(metrics, name)(relevance, ones, k) for k in cutoffs for name in METRICS}
    else:
        values = {f"{name}@{k}": expected(name, ties.ahead, ties.tied, k) for k in cutoffs for name in METRICS}
    summary: dict[str, Any] = {}
    if samples:
        intervals = bootstrap_intervals(np.stack(list(values.values()), axis=1), users, samples=samples, seed=seed)
    for column, (name, of_rows) in enumerate(values.items()):
        summary[name] = float(of_rows.mean())
        if samples:
            summary[f"{name}_ci"] = intervals[column].tolist()
    for k in cutoffs:
        if ties is not None:  # one item is right: both kinds of metrics are the same
            summary |= {f"released_{name}@{k}": summary[f"{name}@{k}"] for name in METRICS}
            continue
        summary |= {f"{name}@{k}": float(getattr(metrics, name)(relevance, k).mean()) for name in RELEASED_METRICS}
    if candidates is None and table.negatives is not None:
        candidates = 1 + table.negatives.shape[1]
    sizes = {"rows": len(table), "users": len(np.unique(users))}
    summary |= sizes | ({} if candidates is None else {"candidates": candidates})
    if ties is not None:
        summary["tied"] = float(ties.tied.mean())
    if new is not None:
        summary["new_transition"] = _apart(table, ranked, new, samples, seed, ties)
    return summary


def _apart(
    table: Table, ranked: np.ndarray, new: np.ndarray, samples: int, seed: int, ties: Ties | None
) -> dict[str, Any]:
    """Hit and ndcg of some rows alone, and how many these are."""
    rows = np.flatnonzero(new)
    if not len(rows):
        return {"rows": 0, "users": 0}
    if ties is not None:
        ties = Ties(ties.ahead[rows], ties.tied[rows])
    found = summarise(table.take(rows), ranked[rows], samples=samples, seed=seed, ties=ties)
    return {key: value for key, value in found.items() if key.startswith(("hit@", "ndcg@", "rows", "users"))}


def evaluate_scores(
    table: Table,
    scores: np.ndarray,
    *,
    samples: int = 1000,
    seed: int = 0,
    k: int = 20,
    new: np.ndarray | None = None,
) -> dict[str, Any]:
    """Metrics of a ranker that scores every candidate, such as popularity or BM25.

    Args:
      table: R rows with C negatives each.
      scores: ``[R, 1 + C]``, larger is better, of the items of ``table.candidates()``.
      samples: bootstrap resamples; 0 leaves the intervals out.
      seed: of the order among equal scores, and of the resamples.
      k: length of the rankings, at least 5.
      new: as of ``summarise``.

    Returns:
      As ``summarise``.

    Raises:
      ValueError: if the scores do not fit the table's candidates, or are not numbers.

    Example:
      >>> from gems_jax.data.dataset.tables import Row, Table
      >>> rows = [Row("ann", [0], 1, negatives=[2, 3]), Row("bob", [3], 0, negatives=[2, 1])]
      >>> table = Table.from_rows("rec", rows)
      >>> evaluate_scores(table, np.array([[0.9, 0.1, 0.2], [0.3, 0.2, 0.1]]), samples=0)["mrr@10"]
      1.0
    """
    candidates = table.candidates()
    scores = np.asarray(scores)
    if scores.shape != candidates.shape:
        raise ValueError(
            f"task {table.task!r}: scores have shape {scores.shape}, the candidates {candidates.shape}: "
            "one score a candidate, the target's first"
        )
    if np.isnan(scores).any():
        raise ValueError(f"task {table.task!r}: row {int(np.argwhere(np.isnan(scores))[0][0])} has a score that is nan")
    order = shuffled_candidates(table, seed)
    shuffled = np.take_along_axis(scores, order, axis=1)
    best = np.take_along_axis(order, np.argsort(-shuffled, axis=1, kind="stable")[:, :k], axis=1)
    ranked = np.take_along_axis(candidates, best, axis=1)
    # Where there are fewer candidates than k, nothing stands behind them.
    ranked = np.pad(ranked, ((0, 0), (0, k - ranked.shape[1])), constant_values=-1)
    return summarise(table, ranked, samples=samples, seed=seed, new=new)


def evaluate_scorer(
    table: Table,
    scorer: Scorer,
    num_items: int,
    *,
    samples: int = 1000,
    seed: int = 0,
    k: int = 20,
    new: np.ndarray | None = None,
    removed: Collection[int] = (),
) -> dict[str, Any]:
    """Metrics of a ranker without a model: among each row's candidates, or the whole catalogue where it has none.

    Args:
      table: R rows, with negatives or without.
      scorer: of the table's rows, see `gems_jax.evaluation.non_neural`.
      num_items: size of the catalogue.
      samples: bootstrap resamples; 0 leaves the intervals out.
      seed: of the order among equal scores, and of the resamples.
      k: length of the rankings, at least 5.
      new: as of ``summarise``.
      removed: items that are left out of the whole catalogue.

    Returns:
      As ``summarise``.

    Raises:
      ValueError: if a score is not a number.

    Example:
      >>> from gems_jax.data.dataset.tables import Row
      >>> table = Table.from_rows("rec", [Row("ann", [0], 2), Row("bob", [3], 1)])
      >>> same = lambda rows, candidates: np.tile(np.arange(8.0), (len(rows), 1))
      >>> evaluate_scorer(table, same, num_items=8, samples=0)["mrr@10"]
      0.15476190476190477
    """
    rows = len(table)
    if table.negatives is not None:
        candidates = table.candidates()
        parts = [scorer(block, candidates[block]) for block in score_blocks(rows, candidates.shape[1])]
        return evaluate_scores(table, np.concatenate(parts), samples=samples, seed=seed, k=k, new=new)
    rng = np.random.default_rng([seed, zlib.crc32(table.task.encode())])
    ranked = np.full((rows, k), -1, np.int32)
    offered = np.setdiff1d(np.arange(num_items), list(removed))
    for block in score_blocks(rows, num_items):
        scores = scorer(block, None)
        if np.isnan(scores).any():
            row = int(block[np.argwhere(np.isnan(scores))[0][0]])
            raise ValueError(f"task {table.task!r}: row {row} has a score that is nan")
        for row, of_items in zip(block.tolist(), scores, strict=True):
            best = offered[_best(of_items[offered], k, rng)]
            ranked[row, : len(best)] = best
    return summarise(table, ranked, samples=samples, seed=seed, candidates=len(offered), new=new)


def _best(scores: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """The k items of the largest scores, best first; of equal ones any, in any order."""
    k = min(k, len(scores))
    last = -np.partition(-scores, k - 1)[k - 1]
    above, level = np.flatnonzero(scores > last), np.flatnonzero(scores == last)
    chosen = np.concatenate([above, level[rng.choice(len(level), k - len(above), replace=False)]])
    chosen = rng.permutation(chosen)
    return chosen[np.argsort(-scores[chosen], kind="stable")]
