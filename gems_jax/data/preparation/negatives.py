"""Seeded negatives for evaluation, the same whatever order users and items are read in."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from gems_jax.data.raw.ragged import Ragged, pair_keys

NUM_NEGATIVES = 99
# Rows drawn at a time: bounds the memory, changes nothing.
_ROWS = 4096
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class NegativeSampler:
    """Draws items uniformly without replacement from those a user never touched.

    A draw depends on the seed, the catalogue and its ``key`` only, so that shuffled input files give the same
    evaluation.

    Args:
      item_ids: the catalogue; item numbers are positions in it.
      seed: of all draws.

    Example:
      >>> sampler = NegativeSampler(["a", "b", "c", "d", "e"], seed=0)
      >>> bool(set(sampler.draw("test/rec/ann", excluded=[0, 1], count=3)) == {2, 3, 4})
      True
    """

    def __init__(self, item_ids: Sequence[str], seed: int):
        self._seed = seed
        # No array of text, each of whose entries is as large as the longest.
        self._by_id = np.asarray(sorted(range(len(item_ids)), key=item_ids.__getitem__), np.int32)
        self._rank = np.empty_like(self._by_id)
        self._rank[self._by_id] = np.arange(len(self._by_id), dtype=np.int32)

    def draw(self, key: str, excluded: Sequence[int] | np.ndarray, count: int = NUM_NEGATIVES) -> np.ndarray:
        """int32 ``[count]`` item numbers outside ``excluded``, a function of seed, catalogue and ``key``."""
        allowed = np.ones(len(self._by_id), bool)
        allowed[self._rank[np.asarray(excluded, np.int64)]] = False
        left = np.flatnonzero(allowed)
        if len(left) < count:
            raise ValueError(
                f"{key}: {count} negatives are needed, but only {len(left)} of {len(self._by_id)} items are left to "
                f"draw from: {len(self._by_id) - len(left)} are the user's or answer the query; use fewer negatives "
                "(data.num_negatives) or a larger catalogue"
            )
        rng = np.random.default_rng([self._seed, zlib.crc32(key.encode())])
        return self._by_id[rng.choice(left, count, replace=False)]

    def draw_rows(self, keys: Sequence[str], excluded: Ragged, count: int = NUM_NEGATIVES) -> np.ndarray:
        """int32 ``[R, count]``: as `draw` for many rows at once, each a function of seed, catalogue and its key only.

        Items are drawn with replacement from the whole catalogue, and the first ``count`` of them that are neither
        excluded nor there already are kept: uniform without replacement. A row that gets too few that way, because
        few items are left, is drawn by `draw`.

        Args:
          keys: ``R`` names of rows.
          excluded: item numbers each row must not get.
          count: items a row.
        """
        parts = [np.zeros((0, count), np.int32)]
        for start in range(0, len(keys), _ROWS):
            rows = np.arange(start, min(start + _ROWS, len(keys)))
            parts.append(self._draw_block(keys[start : start + _ROWS], excluded.take(rows), count))
        return np.concatenate(parts)

    def _draw_block(self, keys: Sequence[str], excluded: Ragged, count: int) -> np.ndarray:
        size, rows = len(self._by_id), len(keys)
        width = 2 * count + 16
        stream = np.asarray([zlib.crc32(key.encode()) for key in keys], np.uint64) ^ _mixed(
            np.uint64(self._seed & (2**63 - 1)) + _GOLDEN
        )
        with np.errstate(over="ignore"):
            drawn = _mixed(_mixed(stream)[:, None] + np.arange(1, width + 1, dtype=np.uint64) * _GOLDEN)
        items = self._by_id[(drawn % np.uint64(size)).astype(np.int64)]
        row_of = np.repeat(np.arange(rows), width)
        is_excluded = np.isin(pair_keys(row_of, items.ravel(), size), pair_keys(excluded.row_of, excluded.values, size))
        order = np.argsort(items, axis=1, kind="stable")
        ordered = np.take_along_axis(items, order, axis=1)
        again = np.zeros((rows, width), bool)
        np.put_along_axis(again, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], axis=1)
        usable = ~again & ~is_excluded.reshape(rows, width)
        chosen = usable & (np.cumsum(usable, axis=1) <= count)
        result = np.zeros((rows, count), np.int32)
        full = chosen.sum(axis=1) == count
        result[full] = items[full][chosen[full]].reshape(-1, count)
        for row in np.flatnonzero(~full).tolist():
            result[row] = self.draw(keys[row], np.unique(excluded[row]), count)
        return result


def _mixed(value: np.ndarray | np.uint64) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): a bijection of 64-bit numbers that looks random."""
    with np.errstate(over="ignore"):
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(value ^ (value >> np.uint64(31)))
