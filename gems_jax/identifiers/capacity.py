"""Codes of rows of which none has more than a capacity: prices that fit, then an auction."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from gems_jax.identifiers.kmeans import padded, slices_of

# Rows of these whose shares are made together.
_BLOCK = 1024
# The widest and the narrowest softmax of the prices' fit, in standard deviations of a row's costs; each is half the one
# before, and has so many steps.
_WIDE, _WARM, _NARROW, _STEPS = 1.0, 0.1, 0.01, 20
# Steps are longer than Sinkhorn's by this (Thibault and others 2017), and need far fewer.
_OVER = 1.8

# Rounds of an auction in which all codes are open, and how much more than its margin a row bids, in mean margins.
_ROUNDS, _MORE = 200, 0.01

# Rows float32 [n, d] at some places of N.
Rows = Callable[[slice | np.ndarray], np.ndarray]


def capacity_of(count: int, size: int, factor: float) -> int:
    """Most rows of a code: ``ceil(factor N / K)``, of at least as many as let all N rows have one.

    Example:
      >>> capacity_of(1000, 256, 1.0), capacity_of(1000, 256, 1.1)
      (4, 5)
    """
    return max(int(np.ceil(factor * count / size - 1e-9)), -(-count // size))


def fit_prices(rows: np.ndarray, centres: np.ndarray, share: float, prices: np.ndarray | None = None) -> np.ndarray:
    """Prices of codes under which the rows' cheapest codes are used about evenly.

    The dual of ``min sum_n |x_n - C_{k_n}|^2`` with at most ``share`` of all rows in each code, made smooth by an
    entropy (Cuturi 2013) whose weight falls to a hundredth of the costs' spread: ``p_k <- max(0, p_k + w eps log(l_k /
    share))``, ``l_k`` the mean over n of ``softmax_k(-(|x_n - C_k|^2 + p_k) / eps)``.

    Args:
      rows: float32 ``[n, d]``; all their costs, ``n K`` numbers, are on the device at once.
      centres: float32 ``[K, d]``.
      share: largest of a code, at least ``1 / K``.
      prices: of similar centres, to go on from.

    Returns:
      float32 ``[K]``, 0 for codes that are not sought after.
    """
    blocks = -(-len(rows) // _BLOCK)
    filled = np.zeros((blocks * _BLOCK, rows.shape[1]), np.float32)
    filled[: len(rows)] = rows
    counted = np.arange(len(filled)) < len(rows)
    widest = _WIDE if prices is None else _WARM
    widths = _NARROW * 2.0 ** np.arange(round(np.log2(widest / _NARROW)), -1, -1)
    start = np.zeros(len(centres), np.float32) if prices is None else prices
    shaped = filled.reshape(blocks, _BLOCK, -1), counted.reshape(blocks, _BLOCK)
    return np.asarray(_fitted(*shaped, centres, np.float32(share * len(rows)), start, widths.astype(np.float32)))


def codes_within(rows: Rows, count: int, centres: np.ndarray, prices: np.ndarray, capacity: int) -> np.ndarray:
    """A code for each row, none of more rows than the capacity, at little more than the least cost where prices fit.

    An auction (Bertsekas 1988): a row without a code bids for the one that is cheapest to it, price included, as much
    as makes the second cheapest as dear, and a little more. A code keeps the rows that bid most, as many as it has room
    for, and the least of their bids becomes its price. After some rounds codes that are full are closed, so that it
    ends.

    Args:
      rows: gives them at some of N places.
      count: N, at most ``capacity * K``.
      centres: float32 ``[K, d]``.
      prices: float32 ``[K]`` to begin with, as of `fit_prices`; the capacity is kept by any.
      capacity: most rows of a code.

    Returns:
      int32 ``[N]``.

    Example:
      >>> rows = np.array([[0.0], [0.1], [0.4], [9.0]], np.float32)
      >>> centres = np.array([[0.0], [5.0]], np.float32)
      >>> codes_within(lambda at: rows[at], 4, centres, np.zeros(2, np.float32), 2).tolist()
      [0, 0, 1, 1]
    """
    size, prices = len(centres), prices.astype(np.float32)
    codes, bids = np.full(count, size, np.int32), np.zeros(count, np.float32)
    loose, more = np.arange(count), None
    for number in range(_ROUNDS + size):
        held = np.bincount(codes, minlength=size + 1)[:size]
        free = np.ones(size, bool) if number < _ROUNDS else held < capacity
        codes[loose], margins = _bid(rows, loose, centres, prices, free)
        more = _MORE * margins.mean() if more is None else more
        bids[loose] = prices[codes[loose]] + margins + more
        full = np.flatnonzero(np.bincount(codes, minlength=size) > capacity)
        members = np.flatnonzero(np.isin(codes, full))
        order = members[np.lexsort((-bids[members], codes[members]))]  # of equal bids the first row keeps it
        place = np.arange(len(order)) - np.searchsorted(codes[order], codes[order])
        prices[full] = bids[order[place == capacity - 1]]
        loose = np.sort(order[place >= capacity])
        codes[loose] = size
        if not len(loose):
            return codes
    raise AssertionError(f"{len(loose)} rows found no code with room")


def _bid(
    rows: Rows, places: np.ndarray, centres: np.ndarray, prices: np.ndarray, free: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The cheapest free code of rows, and how much dearer their second one is, a chunk of rows at a time."""
    codes, margins = np.empty(len(places), np.int32), np.empty(len(places), np.float32)
    for part in slices_of(len(places)):
        at = places[part]
        whole = at[-1] - at[0] + 1 == len(at)  # no copy by places
        made = _cheapest(padded(rows(slice(at[0], at[-1] + 1) if whole else at)), centres, prices, free)
        codes[part], margins[part] = (np.asarray(column)[: len(at)] for column in made)
    return codes, margins


@jax.jit
def _cheapest(rows: jax.Array, centres: jax.Array, prices: jax.Array, free: jax.Array) -> tuple[jax.Array, jax.Array]:
    costs = jnp.where(free, _costs(rows, centres) + prices, jnp.inf)
    codes = costs.argmin(1).astype(jnp.int32)
    second = jnp.where(jnp.arange(len(centres)) == codes[:, None], jnp.inf, costs).min(1)
    return codes, second - costs.min(1)


def _costs(rows: jax.Array, centres: jax.Array) -> jax.Array:
    """Squared distances less what is the same for all codes of a row, float32 ``[n, K]``."""
    shift = centres.mean(0)  # what all have in common would drown the differences
    rows, centres = rows - shift, centres - shift
    return (centres * centres).sum(1) - 2 * jnp.matmul(rows, centres.T, precision=jax.lax.Precision.HIGHEST)


@jax.jit
def _fitted(
    rows: jax.Array, counted: jax.Array, centres: jax.Array, most: jax.Array, prices: jax.Array, widths: jax.Array
) -> jax.Array:
    """Prices after all steps, from rows ``[B, n, d]`` of which some count, and the widths of the softmax in order."""
    costs = jax.lax.map(lambda block: _costs(block, centres), rows)
    spread = jnp.sum(costs.std(2) * counted) / counted.sum()

    def step(number: jax.Array, prices: jax.Array) -> jax.Array:
        eps = jnp.maximum(widths[number // _STEPS] * spread, jnp.finfo(jnp.float32).tiny)

        def add(load: jax.Array, block: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
            shares = jax.nn.softmax(-(block[0] + prices) / eps, axis=1)
            return load + (shares * block[1][:, None]).sum(0), None

        load, _ = jax.lax.scan(add, jnp.zeros_like(prices), (costs, counted))
        return jnp.maximum(prices + _OVER * eps * jnp.log(jnp.maximum(load, 1e-30) / most), 0)

    return jax.lax.fori_loop(0, _STEPS * len(widths), step, prices)
