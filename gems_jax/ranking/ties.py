"""Ranking metrics of items that share a place with others: the mean over all orders of those that tie."""

from typing import NamedTuple

import numpy as np

from gems_jax.ranking.groups import Groups


class Ties(NamedTuple):
    """Which place each row's target shares with others.

    Args:
      ahead: int ``[R]``, items ahead of the first one that ties with the target; -1: the target was not found.
      tied: int ``[R]``, number of items that tie, the target among them.
    """

    ahead: np.ndarray
    tied: np.ndarray


def ties_of(found: np.ndarray, target: np.ndarray, groups: Groups, candidates: np.ndarray | None) -> Ties:
    """The ties of rankings of identifiers that several items share.

    Args:
      found: identifiers ``[R, K]``, best first, -1 where there is none.
      target: item numbers ``[R]``.
      groups: the items of each identifier.
      candidates: item numbers ``[R, C]`` that were ranked, the target among them, -1 pads; ``None``: all items that
        were not removed. A target that was is not found.

    Example:
      >>> from gems_jax.items.tokens import ItemIndex
      >>> from gems_jax.ranking.groups import groups_of
      >>> groups = groups_of(ItemIndex(np.array([[5], [5], [5], [6], [7]]), shared=True))
      >>> ties_of(np.array([[2, 0, 1]]), np.array([2]), groups, None)
      Ties(ahead=array([1]), tied=array([3]))
    """
    own = groups.of(target)
    rows = np.arange(len(found))
    if candidates is None:
        sizes, tied = np.where(found >= 0, groups.ranked[np.maximum(found, 0)], 0), groups.ranked[own]
    else:
        # Counted by sorted pairs of row and identifier.
        count = len(groups.ranked) + 1
        pairs = np.sort((rows[:, None] * count + groups.of(candidates) + 1).reshape(-1))
        wanted = rows[:, None] * count + np.concatenate([found, own[:, None]], axis=1) + 1
        counts = np.searchsorted(pairs, wanted, side="right") - np.searchsorted(pairs, wanted, side="left")
        sizes, tied = np.where(found >= 0, counts[:, :-1], 0), counts[:, -1]
    is_own = found == own[:, None]
    before = np.cumsum(sizes, axis=1) - sizes
    ahead = np.where(is_own.any(axis=1), before[rows, is_own.argmax(axis=1)], -1)
    if candidates is None:
        gone = np.isin(target, list(groups.removed))
        ahead, tied = np.where(gone, -1, ahead), np.where(gone, 1, tied)
    return Ties(ahead, tied)


def expected(name: str, ahead: np.ndarray, tied: np.ndarray, k: int) -> np.ndarray:
    """A metric's mean over all orders of the items that tie with the one that is right, float64 ``[R]``.

    The right one of ``m`` items behind ``b`` others is at each of the places ``b + 1 .. b + m`` with probability ``1 /
    m``: ``1/m sum_{i = b + 1}^{min(b + m, k)} g(i)``, with ``g(i) = 1`` for ``hit``, ``1 / log2(i + 1)`` for ``ndcg``
    and ``1 / i`` for ``mrr`` and ``map``, which are the same where one item is right (McSherry and Najork, 2008).

    Args:
      name: ``hit``, ``ndcg``, ``mrr`` or ``map``.
      ahead: items ahead of the first one that ties ``[R]``; -1: the right one was not found.
      tied: items that tie, the right one among them ``[R]``.
      k: cut-off, at least 1.

    Example:
      >>> expected("mrr", np.array([0, 1, -1]), np.array([1, 2, 2]), k=2).tolist()
      [1.0, 0.25, 0.0]
    """
    places = np.arange(1, k + 1)
    gains = {"hit": np.ones(k), "ndcg": 1 / np.log2(places + 1.0), "mrr": 1.0 / places, "map": 1.0 / places}[name]
    sums = np.concatenate([[0.0], np.cumsum(gains)])
    first = np.clip(ahead, 0, k)
    last = np.clip(ahead + tied, 0, k)
    return np.where(ahead >= 0, (sums[last] - sums[first]) / tied, 0.0)
