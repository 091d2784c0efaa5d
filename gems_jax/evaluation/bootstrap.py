"""Confidence intervals over users."""

import numpy as np


def bootstrap_interval(
    values: np.ndarray,
    users: np.ndarray,
    *,
    level: float = 0.95,
    samples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean, drawing whole users with replacement.

    Rows of one user are not independent of each other, so users are what is drawn (Efron and Tibshirani,
    1993). For two runs over the same rows, give the differences of their values: an interval without 0 tells
    them apart.

    Args:
      values: one number a row ``[R]``.
      users: the user of each row ``[R]``, numbers or text.
      level: share of the distribution inside the interval.
      samples: number of resamples.
      seed: of the draws; the same seed gives the same interval.

    Returns:
      Lower and upper end.

    Raises:
      ValueError: if there are no rows, the lengths differ, or ``level`` is not between 0 and 1.

    Example:
      >>> bootstrap_interval(np.array([1.0, 1.0, 1.0]), np.array(["a", "a", "b"]))
      (1.0, 1.0)
    """
    values, users = np.asarray(values, dtype=np.float64), np.asarray(users)
    if values.ndim != 1 or values.shape != users.shape:
        raise ValueError(f"values has shape {values.shape} and users {users.shape}: one of each a row is needed")
    low, high = bootstrap_intervals(values[:, None], users, level=level, samples=samples, seed=seed)[0]
    return float(low), float(high)


def bootstrap_intervals(
    values: np.ndarray,
    users: np.ndarray,
    *,
    level: float = 0.95,
    samples: int = 1000,
    seed: int = 0,
    weights: np.ndarray | None = None,
) -> np.ndarray:
    """`bootstrap_interval` of several metrics of the same rows, each resample drawn once for all of them.

    Args:
      values: M numbers a row ``[R, M]``.
      users, level, samples, seed: as of `bootstrap_interval`.
      weights: what a row's values are sums over ``[R]``, such as tokens: a mean is then the sum of values over the sum
        of weights. ``None``: 1 each.

    Returns:
      float64 ``[M, 2]``, lower and upper ends.

    Raises:
      ValueError: as `bootstrap_interval`.

    Example:
      >>> bootstrap_intervals(np.array([[1.0, 0.0], [1.0, 0.0]]), np.array(["a", "b"])).tolist()
      [[1.0, 1.0], [0.0, 0.0]]
    """
    values, users = np.asarray(values, dtype=np.float64), np.asarray(users)
    if values.ndim != 2 or users.shape != values.shape[:1]:
        raise ValueError(f"values has shape {values.shape} and users {users.shape}: [R, M] and [R] are needed")
    if not len(values):
        raise ValueError("no rows: an interval needs at least one value")
    if not 0.0 < level < 1.0:
        raise ValueError(f"level is a share between 0 and 1, such as 0.95; got {level}")
    if samples < 1:
        raise ValueError(f"samples must be at least 1; got {samples}")
    _, user = np.unique(users, return_inverse=True)
    counts = np.bincount(user)
    weights = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=np.float64)
    # The last column sums weights, so that one product gives sums and what they are divided by.
    sums = np.stack([np.bincount(user, weights=column) for column in (*values.T, weights)], axis=1)
    rng = np.random.default_rng(seed)
    means = np.empty((samples, values.shape[1]))
    for sample in range(samples):
        drawn = np.bincount(rng.integers(len(counts), size=len(counts)), minlength=len(counts))
        *totals, weight = drawn @ sums
        means[sample] = np.asarray(totals) / weight
    return np.quantile(means, [(1.0 - level) / 2.0, (1.0 + level) / 2.0], axis=0).T
