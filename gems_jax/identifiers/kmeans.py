"""K-means of rows that lie on the host, a chunk of distances at a time."""

from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

# Rows whose distances to all centres are on the device at once.
CHUNK = 8192
# Starts, of which the best on a few rows a centre goes on to all rows.
_STARTS, _START_ROWS = 8, 64
# Rows farthest from their centres that are kept for centres without any, in one pass.
_FARTHEST = 32
_MOST_PASSES = 100
# Passes end when one lowers the sum of squares by less than this share.
_TOLERANCE = 1e-4


def fit_kmeans(rows: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Centres of k-means: greedy k-means++ starts, then passes over all rows until they hardly help any more.

    ``min_C sum_n min_k |x_n - C_k|^2``, after Lloyd; a centre without rows moves to a row far from its own centre.

    Args:
      rows: float32 ``[N, d]``.
      size: K, number of centres; with fewer different rows some are equal.
      seed: of the starts.

    Returns:
      float32 ``[K, d]``.

    Example:
      >>> rows = np.array([[0.0], [0.5], [9.0], [9.5]], np.float32)
      >>> sorted(fit_kmeans(rows, 2, seed=0).ravel().tolist())
      [0.25, 9.25]
    """
    rng = np.random.default_rng(seed)
    few = rows
    if len(rows) > _START_ROWS * size:
        few = rows[np.sort(rng.choice(len(rows), _START_ROWS * size, replace=False))]
    fits = [_improved(few, start_centres(few, size, rng)) for _ in range(_STARTS)]
    return _improved(rows, min(fits, key=lambda fit: fit[1])[0])[0]


def _improved(rows: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, float]:
    """Centres after passes over all rows, and the sum of squares that they leave."""
    best, least = centres, np.inf
    for _ in range(_MOST_PASSES):
        moved, inertia = lloyd_pass(chunks_of(rows), centres)
        gain = least - inertia
        if gain > 0:
            best, least = centres, inertia
        if gain <= _TOLERANCE * inertia:
            break
        centres = moved
    return best, least


def lloyd_pass(chunks: Iterable[np.ndarray], centres: np.ndarray) -> tuple[np.ndarray, float]:
    """One pass of k-means: each centre as the mean of the rows that are nearest to it.

    Args:
      chunks: the rows, float32 ``[n, d]`` each.
      centres: float32 ``[K, d]``.

    Returns:
      The new centres, and the sum of squared distances from the old ones.
    """
    size, width = centres.shape
    sums, counts, inertia = np.zeros((size, width)), np.zeros(size, np.int64), 0.0
    far, far_rows = np.zeros(0, np.float32), np.zeros((0, width), np.float32)
    for rows in chunks:
        codes, distances = nearest(rows, centres)
        add_rows(sums, counts, codes, rows)
        inertia += float(distances.sum(dtype=np.float64))
        top = np.argsort(-distances, kind="stable")[:_FARTHEST]
        far, far_rows = np.concatenate([far, distances[top]]), np.concatenate([far_rows, rows[top]])
        kept = np.argsort(-far, kind="stable")[:_FARTHEST]
        far, far_rows = far[kept], far_rows[kept]
    moved = means_or(sums, counts, centres)
    empty = np.flatnonzero(counts == 0)[: int((far > 0).sum())]
    moved[empty] = far_rows[: len(empty)]
    return moved, inertia


def add_rows(sums: np.ndarray, counts: np.ndarray, codes: np.ndarray, rows: np.ndarray) -> None:
    """Adds rows ``[n, d]`` to the sums ``[K, d]`` of their codes, and their numbers to the counts ``[K]``, in place.

    Sums are of sorted rows and on the host, so that they have the same bits each time, on every device.
    """
    order = np.argsort(codes, kind="stable")
    present, first, count = np.unique(codes[order], return_index=True, return_counts=True)
    sums[present] += np.add.reduceat(rows[order], first, axis=0)
    counts[present] += count


def means_or(sums: np.ndarray, counts: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Means float32 ``[K, d]`` of what `add_rows` has added up; a centre without rows stays."""
    return np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], centres).astype(np.float32)


def nearest(rows: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest centre of each row and its squared distance, int32 and float32 ``[n]``.

    Args:
      rows: float32 ``[n, d]``, at most `CHUNK`; padded to a power of two, so that there are few programs.
      centres: float32 ``[K, d]``.
    """
    codes, distances = _nearest(padded(rows), centres)
    return np.asarray(codes)[: len(rows)], np.asarray(distances)[: len(rows)]


def padded(rows: np.ndarray) -> np.ndarray:
    """Rows ``[n, ...]`` with zeros behind them up to a power of two, 256 at least."""
    wide = 1 << max(8, (len(rows) - 1).bit_length())
    return (
        rows if wide == len(rows) else np.concatenate([rows, np.zeros((wide - len(rows), *rows.shape[1:]), rows.dtype)])
    )


@jax.jit
def _nearest(rows: jax.Array, centres: jax.Array) -> tuple[jax.Array, jax.Array]:
    # Around the centres' mean, since what all have in common would drown the differences in float32.
    shift = centres.mean(0)
    rows, centres = rows - shift, centres - shift
    products = jnp.matmul(rows, centres.T, precision=jax.lax.Precision.HIGHEST)
    scores = (centres * centres).sum(1) - 2 * products
    distances = jnp.maximum(scores.min(1) + (rows * rows).sum(1), 0)
    return scores.argmin(1).astype(jnp.int32), distances


def slices_of(count: int) -> Iterator[slice]:
    """Slices of ``count`` rows in their order, `CHUNK` at a time."""
    return (slice(start, start + CHUNK) for start in range(0, count, CHUNK))


def chunks_of(rows: np.ndarray) -> Iterator[np.ndarray]:
    """The rows in their order, `CHUNK` of them at a time, float32."""
    return (np.ascontiguousarray(rows[part], np.float32) for part in slices_of(len(rows)))


def start_centres(rows: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Greedy k-means++ (Arthur and Vassilvitskii 2007): rows far from those chosen before, the best of a few draws.

    Args:
      rows: float32 ``[N, d]``.
      size: K.
      rng: of the draws.

    Returns:
      float32 ``[K, d]``.
    """
    draws = 2 + int(np.log(size))
    chosen = [int(rng.integers(len(rows)))]
    shifted = rows - rows.mean(0, dtype=np.float64).astype(np.float32)
    squares = np.einsum("nd,nd->n", shifted, shifted)
    closest = _distances(shifted, squares, np.array(chosen))[:, 0]
    for _ in range(size - 1):
        steps = np.cumsum(closest, dtype=np.float64)
        drawn = np.searchsorted(steps, rng.random(draws) * steps[-1], side="right")
        drawn = np.minimum(drawn, len(rows) - 1)
        lowered = np.minimum(closest[:, None], _distances(shifted, squares, drawn))
        best = int(lowered.sum(0, dtype=np.float64).argmin())
        chosen.append(int(drawn[best]))
        closest = lowered[:, best]
    return np.array(rows[chosen], np.float32)


def _distances(rows: np.ndarray, squares: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Squared distances of all rows from some of them, float32 ``[N, draws]``."""
    return np.maximum(squares[:, None] + squares[chosen] - 2 * (rows @ rows[chosen].T), 0)
