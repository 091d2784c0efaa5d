"""Ranking metrics: the textbook definitions, and those of the released code under names of their own.

Every metric takes a ranking as zeros and ones, best first, works on NumPy and JAX arrays alike (also under
``jax.jit``) and gives one number a ranking; means and intervals are the caller's.
"""

from typing import Any

import jax
import numpy as np

Array = Any  # a NumPy or a JAX array: the functions below use only what the two have in common


def hit(ranked_relevance: Array, num_relevant: Array, k: int) -> Array:
    """Whether a relevant item stands among the first k.

    ``hit@k = 1 if sum_{i<=k} rel_i > 0 else 0``

    Args:
      ranked_relevance: zeros and ones ``[..., K]``, best ranked first. Fewer than ``k`` entries: the missing
        ones count as not relevant.
      num_relevant: number of relevant items of each ranking ``[...]``, ranked or not.
      k: cut-off, at least 1.

    Returns:
      Floating-point array ``[...]``.

    Raises:
      ValueError: if a shape, a value or ``k`` is wrong.

    Example:
      >>> hit([[0, 0, 1], [0, 0, 0]], [1, 1], k=3).tolist()
      [1.0, 0.0]
    """
    relevance, _ = _checked(ranked_relevance, num_relevant, k)
    xp = relevance.__array_namespace__()
    return xp.max(relevance, axis=-1, initial=0.0)


def ndcg(ranked_relevance: Array, num_relevant: Array, k: int) -> Array:
    """Discounted cumulative gain over the best that could be had.

    ``DCG@k = sum_{i<=k} rel_i / log2(i + 1)``; the ideal ranking has ``min(num_relevant, k)`` relevant items
    first (Järvelin and Kekäläinen, 2002). 0 where nothing is relevant.

    Args:
      ranked_relevance: zeros and ones ``[..., K]``, best ranked first.
      num_relevant: number of relevant items of each ranking ``[...]``, ranked or not.
      k: cut-off, at least 1.

    Returns:
      Floating-point array ``[...]``.

    Raises:
      ValueError: if a shape, a value or ``k`` is wrong.

    Example:
      >>> ndcg([[1, 0, 0]], [1], k=3).tolist()
      [1.0]
      >>> float(ndcg([0, 1], 1, k=2).round(4))
      0.6309
    """
    relevance, relevant = _checked(ranked_relevance, num_relevant, k)
    return _ndcg(relevance, relevant, k)


def mrr(ranked_relevance: Array, num_relevant: Array, k: int) -> Array:
    """Reciprocal rank of the first relevant item, 0 if it is not among the first k.

    ``mrr@k = 1 / min{i <= k : rel_i = 1}``

    Args:
      ranked_relevance: zeros and ones ``[..., K]``, best ranked first.
      num_relevant: number of relevant items of each ranking ``[...]``, ranked or not.
      k: cut-off, at least 1.

    Returns:
      Floating-point array ``[...]``.

    Raises:
      ValueError: if a shape, a value or ``k`` is wrong.

    Example:
      >>> mrr([[0, 1, 1], [1, 0, 0]], [2, 1], k=3).tolist()
      [0.5, 1.0]
    """
    relevance, _ = _checked(ranked_relevance, num_relevant, k)
    xp = relevance.__array_namespace__()
    return xp.max(relevance / _ranks(relevance), axis=-1, initial=0.0)


def map(ranked_relevance: Array, num_relevant: Array, k: int) -> Array:
    """Average precision of a ranking (its mean over rankings is MAP).

    ``ap@k = sum_{i<=k} rel_i precision@i / min(num_relevant, k)``; 0 where nothing is relevant.

    Args:
      ranked_relevance: zeros and ones ``[..., K]``, best ranked first.
      num_relevant: number of relevant items of each ranking ``[...]``, ranked or not.
      k: cut-off, at least 1.

    Returns:
      Floating-point array ``[...]``.

    Raises:
      ValueError: if a shape, a value or ``k`` is wrong.

    Example:
      >>> map([[1, 0, 1, 0]], [2], k=4).round(4).tolist()
      [0.8333]
    """
    relevance, relevant = _checked(ranked_relevance, num_relevant, k)
    return _average_precision(relevance, relevant, k)


def released_hit(ranked_relevance: Array, k: int) -> Array:
    """``hit`` as the released code has it: the same.

    Args:
      ranked_relevance: zeros and ones ``[..., K]``, best ranked first.
      k: cut-off, at least 1.

    Returns:
      Floating-point array ``[...]``.

    Example:
      >>> released_hit([0, 1], k=2).tolist()
      1.0
    """
    return hit(ranked_relevance, _hits(ranked_relevance), k)


def released_ndcg(ranked_relevance: Array, k: int) -> Array:
    """``ndcg`` as the released code has it: the ideal knows only of the relevant items that were found.

    One relevant item of ten, ranked first, gives 1; the textbook's gives less.

    Args:
      ranked_relevance: zeros and ones ``[..., K]``, best ranked first.
      k: cut-off, at least 1.

    Returns:
      Floating-point array ``[...]``.

    Example:
      >>> released_ndcg([1, 0], k=2).tolist(), ndcg([1, 0], 10, k=2).round(4).tolist()
      (1.0, 0.6131)
    """
    relevance, _ = _checked(ranked_relevance, _hits(ranked_relevance), k)
    return _ndcg(relevance, relevance.sum(axis=-1), k)


def released_mrr(ranked_relevance: Array, k: int) -> Array:
    """``mrr`` as the released code has it: the same.

    Args:
      ranked_relevance: zeros and ones ``[..., K]``, best ranked first.
      k: cut-off, at least 1.

    Returns:
      Floating-point array ``[...]``.

    Example:
      >>> released_mrr([0, 1], k=2).tolist()
      0.5
    """
    return mrr(ranked_relevance, _hits(ranked_relevance), k)


def released_map(ranked_relevance: Array, k: int) -> Array:
    """``map`` as the released code has it: divided by the number of relevant items found within k.

    Args:
      ranked_relevance: zeros and ones ``[..., K]``, best ranked first.
      k: cut-off, at least 1.

    Returns:
      Floating-point array ``[...]``.

    Example:
      >>> released_map([0, 1], k=2).tolist(), map([0, 1], 2, k=2).tolist()
      (0.5, 0.25)
    """
    relevance, _ = _checked(ranked_relevance, _hits(ranked_relevance), k)
    return _average_precision(relevance, relevance.sum(axis=-1), k)


def relevance(ranked_items: Array, targets: Array) -> np.ndarray:
    """Marks which ranked items are targets.

    Args:
      ranked_items: item numbers ``[..., K]``, best first, -1 where there is none.
      targets: item numbers ``[..., R]``, padded with -1.

    Returns:
      int array of zeros and ones ``[..., K]``.

    Raises:
      ValueError: if the leading shapes differ.

    Example:
      >>> relevance([[7, 3, -1]], [[3, -1]]).tolist()
      [[0, 1, 0]]
    """
    ranked, wanted = np.asarray(ranked_items), np.asarray(targets)
    if ranked.shape[:-1] != wanted.shape[:-1]:
        raise ValueError(
            f"ranked_items has shape {ranked.shape} and targets {wanted.shape}: all but the last axis must agree"
        )
    matches = (ranked[..., :, None] == wanted[..., None, :]) & (ranked[..., :, None] >= 0)
    return matches.any(axis=-1).astype(np.int64)


def _ndcg(relevance: Array, relevant: Array, k: int) -> Array:
    xp = relevance.__array_namespace__()
    discounts = 1.0 / np.log2(np.arange(1, k + 1) + 1.0)
    gain = (relevance * discounts[: relevance.shape[-1]].astype(relevance.dtype)).sum(axis=-1)
    ideal_gains = np.concatenate([[0.0], np.cumsum(discounts)])
    best = xp.asarray(ideal_gains, dtype=relevance.dtype)[xp.clip(relevant, 0, k).astype(int)]
    return xp.where(best > 0, gain / xp.where(best > 0, best, 1.0), 0.0)


def _average_precision(relevance: Array, relevant: Array, k: int) -> Array:
    xp = relevance.__array_namespace__()
    precision = xp.cumsum(relevance, axis=-1) / _ranks(relevance)
    best = xp.clip(relevant, 0, k)
    return xp.where(best > 0, (relevance * precision).sum(axis=-1) / xp.where(best > 0, best, 1), 0.0)


def _ranks(relevance: Array) -> np.ndarray:
    return np.arange(1, relevance.shape[-1] + 1).astype(relevance.dtype)


def _hits(ranked_relevance: Array) -> Array:
    return _array(ranked_relevance).sum(axis=-1)


def _array(values: Array) -> Array:
    return values if isinstance(values, jax.Array) else np.asarray(values)


def _checked(ranked_relevance: Array, num_relevant: Array, k: int) -> tuple[Array, Array]:
    """The first k columns as floating point, and the counts; or one error that says what is wrong."""
    relevance, relevant = _array(ranked_relevance), _array(num_relevant)
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise ValueError(f"k is the cut-off of a ranking metric, a whole number from 1 upward; got {k!r}")
    if relevance.ndim < 1:
        raise ValueError("ranked_relevance needs a last axis, the ranks: got a single number")
    if relevant.shape != relevance.shape[:-1]:
        raise ValueError(
            f"num_relevant has shape {relevant.shape}; ranked_relevance of shape {relevance.shape} needs one "
            f"number a ranking, shape {relevance.shape[:-1]}"
        )
    if not any(isinstance(array, jax.core.Tracer) for array in (relevance, relevant)):
        _check_values(np.asarray(relevance), np.asarray(relevant))
    if isinstance(relevance, jax.Array):
        return relevance[..., :k].astype("float32"), relevant
    return relevance[..., :k].astype(np.float64), relevant


def _check_values(relevance: np.ndarray, relevant: np.ndarray) -> None:
    if not ((relevance == 0) | (relevance == 1)).all():
        raise ValueError("ranked_relevance must hold zeros and ones: 1 where the ranked item is relevant")
    hits = relevance.sum(axis=-1)
    if (hits > relevant).any():
        where = tuple(int(i) for i in np.argwhere(hits > relevant)[0])
        raise ValueError(
            f"ranking {where} holds {int(hits[where])} relevant items but num_relevant says "
            f"{int(relevant[where])}: num_relevant counts all relevant items, found or not, and an item "
            "may be ranked once only"
        )
