"""What codes are like: how many items share all of theirs, and how evenly the codes of a level are used."""

import numpy as np

from gems_jax.identifiers.kmeans import slices_of


def in_collisions(codes: np.ndarray) -> int:
    """Number of items that share all codes with another.

    Args:
      codes: int ``[N, L]``.

    Example:
      >>> in_collisions(np.array([[0, 1], [0, 2], [0, 1]]))
      2
    """
    return int((counts_of(codes) > 1).sum())


def counts_of(codes: np.ndarray) -> np.ndarray:
    """For each row, how many rows are equal to it, itself included: int ``[N]``.

    Args:
      codes: int ``[N, L]``.
    """
    if not len(codes):
        return np.zeros(0, np.int64)
    order = np.lexsort(codes.T[::-1])
    first = np.ones(len(codes), bool)
    first[1:] = (codes[order][1:] != codes[order][:-1]).any(1)
    number = np.cumsum(first) - 1
    counts = np.empty(len(codes), np.int64)
    counts[order] = np.bincount(number)[number]
    return counts


def use_of_level(codes: np.ndarray) -> tuple[int, int, float]:
    """How many codes of a level any item has, how many items the largest has, and the entropy of the codes, in bits.

    Args:
      codes: int ``[N]``.

    Example:
      >>> use_of_level(np.array([0, 0, 3, 3]))
      (2, 2, 1.0)
    """
    counts = np.bincount(codes)
    shares = counts[counts > 0] / len(codes)
    return len(shares), int(counts.max()), float(-(shares * np.log2(shares)).sum()) + 0.0


def level_errors(codes: np.ndarray, rows: np.ndarray, codebooks: np.ndarray) -> tuple[float, ...]:
    """Mean squared distance of rows from their mean, then from the sums of their first 1, ..., L codes.

    Args:
      codes: int ``[N, L]``.
      rows: float ``[N, d]``.
      codebooks: float ``[L, K, d]``.

    Example:
      >>> level_errors(np.array([[1], [0]]), np.array([[2.0], [0.0]]), np.array([[[0.0], [1.5]]]))
      (1.0, 0.125)
    """
    mean = rows.mean(0, dtype=np.float64).astype(np.float32)
    sums = np.zeros(len(codebooks) + 1)
    for part in slices_of(len(rows)):
        chunk = rows[part]
        sums[0] += float(np.square(chunk - mean).sum(dtype=np.float64))
        for level, (book, column) in enumerate(zip(codebooks, codes[part].T, strict=True), 1):
            chunk = chunk - book[column]
            sums[level] += float(np.square(chunk).sum(dtype=np.float64))
    return tuple((sums / len(rows)).tolist())
