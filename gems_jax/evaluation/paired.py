"""Whether two runs differ by more than chance, from what each found for the same users."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from gems_jax.evaluation.bootstrap import bootstrap_interval
from gems_jax.ranking import metrics
from gems_jax.ranking.ties import expected

# Sign flips drawn at once.
_BLOCK = 256


class PairedTest(NamedTuple):
    """The outcome of `paired_test`.

    Args:
      difference: mean of ``a - b`` over rows.
      low, high: 95 % interval of it, by bootstrap over users.
      p_value: two-sided, by permutation over users.
      users: number of users.
    """

    difference: float
    low: float
    high: float
    p_value: float
    users: int


def paired_test(a: np.ndarray, b: np.ndarray, users: np.ndarray, *, samples: int = 10_000, seed: int = 0) -> PairedTest:
    """Compares two runs on the same rows: permutation test and bootstrap interval of the mean difference.

    If the runs were equally good, each user's differences could as well have the opposite sign, all of one user
    together. The p-value is the share of random signs that give a mean at least as far from 0,
    ``(1 + #{|mean*| >= |mean|}) / (1 + samples)`` (Smucker et al., 2007, with users in place of topics; Phipson and
    Smyth, 2010, on the 1). The interval is that of `bootstrap_interval`.

    Args:
      a, b: a metric of each row in either run ``[R]``, such as from `metric_of_rows`.
      users: the user of each row ``[R]``, numbers or text.
      samples: number of sign flips, and of resamples.
      seed: of the draws; the same seed gives the same outcome.

    Returns:
      Difference, interval, p-value and number of users.

    Raises:
      ValueError: if the lengths differ, there are no rows, a value is not finite or ``samples`` is below 1.

    Example:
      >>> users = np.arange(12)
      >>> paired_test(np.ones(12), np.zeros(12), users).p_value < 0.01
      True
      >>> paired_test(np.ones(12), np.ones(12), users).p_value
      1.0
    """
    a, b, users = np.asarray(a, np.float64), np.asarray(b, np.float64), np.asarray(users)
    if a.ndim != 1 or not a.shape == b.shape == users.shape:
        raise ValueError(f"a has shape {a.shape}, b {b.shape} and users {users.shape}: one of each a row is needed")
    if not np.isfinite(a).all() or not np.isfinite(b).all():
        raise ValueError("a and b must be finite in every row: give rows that both runs have ranked")
    difference = a - b
    low, high = bootstrap_interval(difference, users, samples=samples, seed=seed)
    _, user = np.unique(users, return_inverse=True)
    sums = np.bincount(user, weights=difference)
    observed = abs(sums.sum())
    # Users without a difference have no sign to flip.
    moved = sums[sums != 0]
    rng = np.random.default_rng(seed)
    extreme = 0
    for start in range(0, samples, _BLOCK):
        signs = 2 * rng.integers(2, size=(min(_BLOCK, samples - start), len(moved)), dtype=np.int8) - 1
        # Sums of the same numbers in another order differ by rounding.
        extreme += int((np.abs(signs @ moved) >= observed - 1e-9 * np.abs(moved).sum()).sum())
    return PairedTest(float(difference.mean()), low, high, (1 + extreme) / (1 + samples), len(sums))


def metric_of_rows(rankings: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """A metric of each row of saved rankings.

    Args:
      rankings: of `gems_jax.evaluation.evaluate.load_rankings`: ``items`` ``[R, k]`` and ``target`` ``[R]`` are used,
        and where items share identifiers ``ahead`` and ``tied``.
      name: metric and cut-off, such as ``"ndcg@10"``.

    Returns:
      float64 ``[R]``.

    Raises:
      ValueError: if there is no such metric, or fewer results were kept than its cut-off.

    Example:
      >>> metric_of_rows({"items": np.array([[4, 2], [1, 3]]), "target": np.array([2, 0])}, "mrr@2").tolist()
      [0.5, 0.0]
    """
    metric, _, cut = name.partition("@")
    if metric not in ("hit", "ndcg", "mrr", "map") or not cut.isdigit():
        raise ValueError(f"{name!r} is no metric: write hit, ndcg, mrr or map and a cut-off, such as 'ndcg@10'")
    items, target = rankings["items"], rankings["target"]
    if items.shape[1] < int(cut):
        raise ValueError(f"{name} needs {cut} results a row, {items.shape[1]} were kept: evaluate with k={cut}")
    if "tied" in rankings:
        return expected(metric, rankings["ahead"], rankings["tied"], int(cut))
    relevance = metrics.relevance(items, target[:, None])
    values: np.ndarray = getattr(metrics, metric)(relevance, np.ones(len(target), np.int64), int(cut))
    return values


def compare_rankings(
    a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray], name: str, *, samples: int = 10_000, seed: int = 0
) -> PairedTest:
    """`paired_test` of a metric of two runs' saved rankings.

    Args:
      a, b: of `gems_jax.evaluation.evaluate.load_rankings`, the same rows in the same order.
      name: metric and cut-off, such as ``"ndcg@10"``.
      samples, seed: as of `paired_test`.

    Returns:
      As `paired_test`; a positive difference speaks for ``a``.

    Raises:
      ValueError: if the runs ranked other rows, or as `metric_of_rows`.
    """
    for key in ("user_ids", "target"):
        if not np.array_equal(a[key], b[key]):
            raise ValueError(f"the two runs ranked different rows ({key} differ): evaluate both on the same ones")
    return paired_test(metric_of_rows(a, name), metric_of_rows(b, name), a["user_ids"], samples=samples, seed=seed)
