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
    values = np.asarray(values, dtype=np.float64)
    users = np.asarray(users)
    if values.ndim != 1 or values.shape != users.shape:
        raise ValueError(f"values has shape {values.shape} and users {users.shape}: one of each a row is needed")
    if values.size == 0:
        raise ValueError("no rows: an interval needs at least one value")
    if not 0.0 < level < 1.0:
        raise ValueError(f"level is a share between 0 and 1, such as 0.95; got {level}")
    if samples < 1:
        raise ValueError(f"samples must be at least 1; got {samples}")
    _, user = np.unique(users, return_inverse=True)
    counts = np.bincount(user)
    sums = np.bincount(user, weights=values)
    rng = np.random.default_rng(seed)
    means = np.empty(samples)
    for sample in range(samples):
        drawn = rng.integers(len(counts), size=len(counts))
        means[sample] = sums[drawn].sum() / counts[drawn].sum()
    low, high = np.quantile(means, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return float(low), float(high)
