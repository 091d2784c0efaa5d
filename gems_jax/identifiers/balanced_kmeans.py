"""Residual k-means whose codes hold no more items than a capacity."""

from collections.abc import Callable

import numpy as np

from gems_jax.identifiers.capacity import Rows, capacity_of, codes_within, fit_prices
from gems_jax.identifiers.kmeans import add_rows, fit_kmeans, means_or, slices_of

# Rows times codes that the passes are made with: 64 MiB of costs.
_COSTS = 2**24
# Passes end when one lowers the sum of squares by less than this share, or after so many.
_TOLERANCE, _MOST_PASSES = 1e-3, 20
# Passes over all items behind those over some of them.
_PASSES_OVER_ALL = 2


def balanced_rkmeans(
    rows: np.ndarray, chosen: slice | np.ndarray, levels: int, size: int, seed: int, factor: float
) -> tuple[np.ndarray, np.ndarray]:
    """Codes and codebooks of which no code of a level has more items than the capacity.

    Each level starts at the centres of k-means. Passes then give items codes within the capacity, by prices of the
    codes, and make each centre the mean of its items.

    Args:
      rows: float32 ``[N, d]``.
      chosen: places of the items that k-means is fitted on.
      levels, size: L and K.
      seed: of the starts.
      factor: the capacity as a multiple of ``N / K``.

    Returns:
      Codes int32 ``[N, L]`` and codebooks float32 ``[L, K, d]``.
    """
    count = len(rows)
    capacity = capacity_of(count, size, factor)
    codes, books = np.zeros((count, levels), np.int32), np.zeros((levels, size, rows.shape[1]), np.float32)
    for level in range(levels):
        left = _residuals(rows, codes, books, level)
        sample = left(chosen)
        centres = fit_kmeans(sample, size, seed + level)
        few = sample[:: -(-len(sample) // max(1, _COSTS // size))]
        centres, prices = _fitted(few, centres, capacity_of(len(few), size, factor))
        for _ in range(1 if len(few) == count else _PASSES_OVER_ALL):
            prices = fit_prices(few, centres, capacity / count, prices)
            codes[:, level] = codes_within(left, count, centres, prices, capacity)
            centres, _ = _means(left, codes[:, level], centres)
        books[level] = centres
    return codes, books


def _fitted(rows: np.ndarray, centres: np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """Centres and prices after passes over some rows."""
    prices, best, least = None, (centres, np.zeros(len(centres), np.float32)), np.inf
    for _ in range(_MOST_PASSES):
        prices = fit_prices(rows, centres, capacity / len(rows), prices)
        codes = codes_within(rows.__getitem__, len(rows), centres, prices, capacity)
        moved, inertia = _means(rows.__getitem__, codes, centres)
        gain = least - inertia
        if gain > 0:
            best, least = (moved, prices), inertia
        if gain <= _TOLERANCE * inertia:
            break
        centres = moved
    return best


def _residuals(rows: np.ndarray, codes: np.ndarray, books: np.ndarray, level: int) -> Rows:
    """What the codes of the levels before one leave of rows, at some of their places."""

    def left(at: slice | np.ndarray) -> np.ndarray:
        part = np.array(rows[at], np.float32)
        for book, column in zip(books[:level], codes[at].T, strict=False):
            part -= book[column]
        return part

    return left


def _means(rows: Callable[[slice], np.ndarray], codes: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, float]:
    """The mean of each code's rows, and the sum of squared distances from the centres before."""
    sums, counts, inertia = np.zeros(centres.shape), np.zeros(len(centres), np.int64), 0.0
    for part in slices_of(len(codes)):
        chunk, column = rows(part), codes[part]
        inertia += float(np.square(chunk - centres[column]).sum(dtype=np.float64))
        add_rows(sums, counts, column, chunk)
    return means_or(sums, counts, centres), inertia
