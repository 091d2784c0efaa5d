"""Seeded negatives for evaluation, the same whatever order users and items are read in."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

NUM_NEGATIVES = 99


class NegativeSampler:
    """Draws items uniformly without replacement from those a user never touched.

    A draw depends on the seed, the catalogue and its `key` only, so that shuffled input files give the same
    evaluation.

    Example:
        >>> sampler = NegativeSampler(["a", "b", "c", "d", "e"], seed=0)
        >>> bool(set(sampler.draw("test/rec/ann", excluded=[0, 1], count=3)) == {2, 3, 4})
        True

    Args:
        item_ids: the catalogue; item numbers are positions in it.
        seed: of all draws.
    """

    def __init__(self, item_ids: Sequence[str], seed: int):
        self._seed = seed
        self._by_id = np.argsort(np.asarray(item_ids, dtype=np.str_), kind="stable").astype(np.int32)
        self._rank = np.empty_like(self._by_id)
        self._rank[self._by_id] = np.arange(len(self._by_id), dtype=np.int32)

    def draw(self, key: str, excluded: Sequence[int] | np.ndarray, count: int = NUM_NEGATIVES) -> np.ndarray:
        """int32 `[count]` item numbers outside `excluded`, a function of seed, catalogue and `key`."""
        allowed = np.ones(len(self._by_id), bool)
        allowed[self._rank[np.asarray(excluded, np.int64)]] = False
        left = np.flatnonzero(allowed)
        if len(left) < count:
            raise ValueError(
                f"{key}: {count} negatives are needed, but only {len(left)} of {len(self._by_id)} "
                f"items are left "
                "to draw from; use fewer negatives (num_negatives) or a larger catalogue"
            )
        rng = np.random.default_rng([self._seed, zlib.crc32(key.encode())])
        return self._by_id[rng.choice(left, count, replace=False)]
