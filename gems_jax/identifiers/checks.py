"""What embeddings, codes and codebooks must be; errors that say what they are."""

import numpy as np

from gems_jax.identifiers.kmeans import slices_of

# A codebook's code is a token of the vocabulary.
MOST_LEVELS, MOST_SIZE = 16, 65_536


def check_sizes(levels: int, size: int) -> None:
    """Raises ``ValueError`` for a number of codebooks, or of codes in each, that cannot be.

    Example:
      >>> check_sizes(3, 256)
    """
    if not 1 <= levels <= MOST_LEVELS:
        raise ValueError(f"levels must be from 1 to {MOST_LEVELS}, got {levels}")
    if not 2 <= size <= MOST_SIZE:
        raise ValueError(f"size must be from 2 to {MOST_SIZE:,}, got {size}")


def checked_embeddings(embeddings: np.ndarray) -> np.ndarray:
    """Embeddings float32 ``[N, d]``, without a copy where they are so.

    Raises:
      ValueError: another shape, no rows, or numbers that are not finite.
    """
    rows = np.asarray(embeddings)
    if rows.ndim != 2 or 0 in rows.shape or not np.issubdtype(rows.dtype, np.floating):
        raise ValueError(
            f"embeddings have shape {rows.shape} and dtype {rows.dtype}: expected floats [N, d], a row for each item"
        )
    for part in slices_of(len(rows)):
        wrong = ~np.isfinite(rows[part].astype(np.float32)).all(1)
        if wrong.any():
            raise ValueError(
                f"embeddings, row {part.start + int(np.argmax(wrong))}: not all of its numbers are finite in "
                "float32; the model that made them is broken"
            )
    return rows if rows.dtype == np.float32 else rows.astype(np.float32)


def check_width(rows: np.ndarray, codebooks: np.ndarray) -> None:
    """Raises ``ValueError`` where rows ``[N, d]`` are not as wide as codebooks ``[L, K, d]``."""
    if rows.shape[1] != codebooks.shape[2]:
        raise ValueError(
            f"embeddings have {rows.shape[1]} dimensions, the codebooks {codebooks.shape[2]}: take those of the model "
            "that the codebooks were made with"
        )


def check_codes(codes: np.ndarray, rows: np.ndarray, codebooks: np.ndarray) -> None:
    """Raises ``ValueError`` unless codes int ``[N, L]`` are of these rows ``[N, d]`` and codebooks ``[L, K, d]``."""
    if codebooks.ndim != 3:
        raise ValueError(f"codebooks have shape {codebooks.shape}: expected [L, K, d]")
    check_width(rows, codebooks)
    levels, size, _ = codebooks.shape
    if codes.shape != (len(rows), levels) or not np.issubdtype(codes.dtype, np.integer):
        raise ValueError(
            f"codes have shape {codes.shape} and dtype {codes.dtype}: expected integers [{len(rows)}, {levels}], a row "
            f"for each of the {len(rows)} embeddings and a column for each of the {levels} codebooks"
        )
    if codes.min() < 0 or codes.max() >= size:
        raise ValueError(f"codes reach from {codes.min()} to {codes.max()}: the codebooks have codes 0 to {size - 1}")
