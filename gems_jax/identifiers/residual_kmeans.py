"""Residual k-means: the codebook of each level is of what the levels before it leave."""

from collections.abc import Iterator

import numpy as np

from gems_jax.identifiers.balanced_kmeans import balanced_rkmeans
from gems_jax.identifiers.checks import check_sizes, checked_embeddings
from gems_jax.identifiers.codes import Identifiers, quantise
from gems_jax.identifiers.kmeans import chunks_of, fit_kmeans, lloyd_pass, nearest, slices_of
from gems_jax.identifiers.measures import level_errors

# Passes over all items behind the fit to a sample of them.
_PASSES_OVER_ALL = 2


def rkmeans(
    embeddings: np.ndarray,
    levels: int = 3,
    size: int = 256,
    seed: int = 0,
    sample: int | None = None,
    capacity_factor: float | None = None,
) -> Identifiers:
    """Codes of items by residual k-means.

    ``C_l = kmeans({r_l})``, ``c_l = argmin_k |r_l - C_l[k]|^2``, ``r_{l + 1} = r_l - C_l[c_l]``, with ``r_1 = x``.
    Items may share all codes: `Identifiers.without_collisions` separates them.

    Args:
      embeddings: float ``[N, d]`` on the host, maybe mapped from a file; beside it there are copies of ``sample`` rows
        and of a few thousand.
      levels: L, number of codebooks.
      size: K, codes of each.
      seed: of the starts; the same seed gives the same bits.
      sample: most items, drawn at random, that a codebook is fitted on until it hardly changes; of a larger catalogue
        all items then go into two more passes. ``None``: 1,024 for each code of a level.
      capacity_factor: f; no code of a level is then given to more than ``ceil(f N / K)`` of the N items, at the least
        cost that is found. ``None``: each item has the nearest code, however many have it.

    Returns:
      `Identifiers` with ``codebooks`` float32 ``[L, K, d]``.

    Raises:
      ValueError: a wrong shape, numbers that are not finite, or another argument out of range.

    Example:
      >>> ids = rkmeans(np.random.default_rng(0).normal(size=(50, 4)), levels=2, size=4)
      >>> ids.codes.shape, ids.codebooks.shape
      ((50, 2), (2, 4, 4))
    """
    check_sizes(levels, size)
    rows = checked_embeddings(embeddings)
    most = 1024 * size if sample is None else sample
    if most < 1:
        raise ValueError(f"sample must be at least 1, got {sample}")
    if capacity_factor is not None and not 1 <= capacity_factor < np.inf:
        raise ValueError(f"capacity_factor must be 1 or more, got {capacity_factor}")
    chosen: slice | np.ndarray = slice(None)
    if len(rows) > most:
        chosen = np.sort(np.random.default_rng(seed).choice(len(rows), most, replace=False))
    if capacity_factor is not None:
        codes, books = balanced_rkmeans(rows, chosen, levels, size, seed, capacity_factor)
        return Identifiers(codes, books, errors=level_errors(codes, rows, books))
    left = np.array(rows[chosen])
    books = np.zeros((levels, size, rows.shape[1]), np.float32)
    for level in range(levels):
        books[level] = fit_kmeans(left, size, seed + level)
        if len(left) < len(rows):
            for _ in range(_PASSES_OVER_ALL):
                books[level], _ = lloyd_pass(_residuals(rows, books[:level]), books[level])
        for part in slices_of(len(left)):
            left[part] -= books[level][nearest(left[part], books[level])[0]]
    codes = quantise(rows, books)
    return Identifiers(codes, books, errors=level_errors(codes, rows, books))


def _residuals(rows: np.ndarray, books: np.ndarray) -> Iterator[np.ndarray]:
    """What some codebooks leave of rows, in chunks."""
    for chunk in chunks_of(rows):
        for book in books:
            chunk = chunk - book[nearest(chunk, book)[0]]
        yield chunk
