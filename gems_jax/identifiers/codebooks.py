"""The codebooks that codes from elsewhere would have had."""

import numpy as np

from gems_jax.identifiers.kmeans import slices_of


def codebooks_of(codes: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """For each level the means, over the items of each code, of what the levels before it leave.

    ``C_l[k] = mean {r_l of items with c_l = k}``, ``r_{l + 1} = r_l - C_l[c_l]``; 0 for a code that no item has.

    Args:
      codes: int ``[N, L]``.
      rows: float ``[N, d]``, embeddings of the items.

    Returns:
      float32 ``[L, K, d]``, K one more than the largest code.

    Example:
      >>> codebooks_of(np.array([[0, 1], [0, 0], [1, 1]]), np.array([[1.0], [3.0], [9.0]])).tolist()
      [[[2.0], [9.0]], [[1.0], [-0.5]]]
    """
    size = int(codes.max()) + 1
    left = np.array(rows, np.float32)
    books = np.zeros((codes.shape[1], size, rows.shape[1]), np.float32)
    for book, column in zip(books, codes.T, strict=True):
        order = np.argsort(column, kind="stable")
        present, first, count = np.unique(column[order], return_index=True, return_counts=True)
        for code, start, number in zip(present, first, count, strict=True):
            book[code] = left[order[start : start + number]].mean(0, dtype=np.float64)
        for part in slices_of(len(left)):
            left[part] -= book[column[part]]
    return books
