"""Items that share an identifier: ranked as one, listed one after the other in the order of the catalogue."""

import dataclasses
import weakref
from collections.abc import Callable

import numpy as np

from gems_jax.items.tokens import ItemIndex


@dataclasses.dataclass(frozen=True)
class Groups:
    """The items of each identifier.

    Args:
      index: the G identifiers, each once; removed are those whose items are all removed.
      group_of: int32 ``[N]``, the identifier of each item.
      ranked: int ``[G]``, items of each identifier that were not removed.
      members: int32 ``[N]``, item numbers, those of an identifier together and ascending.
      first: int ``[G + 1]``; the items of identifier ``g`` are ``members[first[g]:first[g + 1]]``.
      removed: of the items.
    """

    index: ItemIndex
    group_of: np.ndarray
    ranked: np.ndarray
    members: np.ndarray
    first: np.ndarray
    removed: frozenset[int]

    def items_of(self, group: int) -> list[int]:
        """The items of an identifier, ascending, removed ones among them."""
        return self.members[self.first[group] : self.first[group + 1]].tolist()

    def among(self, candidates: np.ndarray) -> np.ndarray:
        """The identifiers of each row's candidates, each once, in the order of the first candidate that has it.

        Args:
          candidates: item numbers int ``[B, C]``, -1 pads.

        Returns:
          int ``[B, C]``, -1 pads.
        """
        groups = self.of(candidates)
        result = np.full_like(groups, -1)
        for row, of_row in zip(result, groups, strict=True):
            _, places = np.unique(of_row, return_index=True)
            once = of_row[np.sort(places)]
            once = once[once >= 0]
            row[: len(once)] = once
        return result

    def of(self, items: np.ndarray) -> np.ndarray:
        """The identifiers of items, -1 where there is none."""
        return np.where(items >= 0, self.group_of[np.maximum(items, 0)], -1)

    def listed(
        self, groups: np.ndarray, scores: np.ndarray, candidates: np.ndarray | None, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rankings of items, of rankings of identifiers: items of one stand by their numbers, all with its score.

        Args:
          groups: int ``[B, n]``, best first, -1 where there is none.
          scores: ``[B, n]``.
          candidates: items that may be ranked ``[B, C]``; ``None``: all that were not removed.
          k: most items of a row.

        Returns:
          Item numbers int32 ``[B, k]`` and scores float32 ``[B, k]``, -1 and ``-inf`` where there are no more.
        """
        items, values = np.full((len(groups), k), -1, np.int32), np.full((len(groups), k), -np.inf, np.float32)
        for row in range(len(groups)):
            allowed = None if candidates is None else frozenset(candidates[row].tolist())
            ranks = (lambda item: item not in self.removed) if allowed is None else allowed.__contains__
            some, of_some, _ = self.list_row(groups[row].tolist(), scores[row].tolist(), ranks, k)
            items[row, : len(some)], values[row, : len(some)] = some, of_some
        return items, values

    def list_row(
        self, groups: list[int], scores: list[float], ranks: Callable[[int], bool], k: int
    ) -> tuple[list[int], list[float], int]:
        """One of `listed`.

        Args:
          groups: best first, -1 where there is none.
          scores: of each.
          ranks: whether an item may be ranked.
          k: most items.

        Returns:
          At most k items, their scores, and how many more items tie with the last one.
        """
        items: list[int] = []
        values: list[float] = []
        for group, score in zip(groups, scores, strict=True):
            if group >= 0:
                some = [item for item in self.items_of(group) if ranks(item)]
                items += some
                values += [score] * len(some)
            if len(items) >= k:
                break
        return items[:k], values[:k], max(0, len(items) - k)


# As of `gems_jax.ranking.trie`: items never change; what is made of them goes when they go.
_GROUPS: weakref.WeakKeyDictionary[ItemIndex, Groups] = weakref.WeakKeyDictionary()


def groups_of(items: ItemIndex) -> Groups:
    """The items of each identifier, found at the first call and kept with the items from then on.

    Args:
      items: identifiers ``[N, L]``, of which some may be equal.

    Example:
      >>> groups = groups_of(ItemIndex(np.array([[7, 4], [5, 6], [7, 4]]), shared=True))
      >>> groups.index.token_ids.tolist(), [groups.items_of(group) for group in (0, 1)]
      ([[5, 6], [7, 4]], [[1], [0, 2]])
    """
    if items not in _GROUPS:
        tokens, group_of = np.unique(items.token_ids, axis=0, return_inverse=True)
        group_of = group_of.reshape(-1).astype(np.int32)
        members = np.argsort(group_of, kind="stable").astype(np.int32)
        first = np.concatenate([[0], np.cumsum(np.bincount(group_of, minlength=len(tokens)))])
        offered = np.ones(len(group_of), bool)
        offered[list(items.removed)] = False
        ranked = np.bincount(group_of[offered], minlength=len(tokens))
        gone = frozenset(np.flatnonzero(ranked == 0).tolist())
        _GROUPS[items] = Groups(ItemIndex(tokens, gone), group_of, ranked, members, first, items.removed)
    return _GROUPS[items]
