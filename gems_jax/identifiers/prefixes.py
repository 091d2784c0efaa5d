"""The first codes of identifiers that stand for vectors near a given one."""

from collections.abc import Sequence

import numpy as np


def nearest_prefixes(vector: np.ndarray, codebooks: Sequence[np.ndarray] | np.ndarray, count: int) -> np.ndarray:
    """Rows of codes whose sums lie nearest to a vector, found level by level with ``count`` of them kept.

    Args:
      vector: ``[d]``.
      codebooks: of each level ``[K, d]``; of no level there is one empty row.
      count: how many are wanted; as many as ``K^L`` are all there are, each once.

    Returns:
      int32 ``[min(count, K^L), L]``, nearest first.

    Example:
      >>> books = np.array([[[0.0], [8.0]], [[-1.0], [1.0]]])
      >>> nearest_prefixes(np.array([7.5]), books, 3).tolist()
      [[1, 0], [1, 1], [0, 1]]
    """
    left, codes = np.asarray(vector, np.float64)[None], np.zeros((1, 0), np.int32)
    for book in codebooks:
        further = left[:, None] - book
        order = np.argsort(np.square(further).sum(-1).ravel(), kind="stable")[:count]
        parent, code = np.divmod(order, len(book))
        left = further[parent, code]
        codes = np.concatenate([codes[parent], code[:, None].astype(np.int32)], axis=1)
    return codes
