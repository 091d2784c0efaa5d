"""Answers of items that share identifiers: these are what is ranked, and an answer lists their items."""

import numpy as np

from gems_jax.items.tokens import ItemIndex
from gems_jax.ranking.groups import groups_of
from gems_jax.serving.catalogue import Ranking


class Together:
    """Requests in numbers of identifiers, and the way back.

    Args:
      items: of which several may have one identifier.

    Attributes:
      index: the identifiers, each once.
    """

    def __init__(self, items: ItemIndex):
        self._groups = groups_of(items)
        self.index = self._groups.index

    def listed(self, ranking: Ranking) -> np.ndarray:
        """The identifiers of a request's list: of items to choose from all, else those of which no item is left.

        Example:
          >>> together = Together(ItemIndex(np.array([[5], [5], [6]]), shared=True))
          >>> request = Ranking("rec", "", 9, (), frozenset(), np.array([0, 2], np.int32), keeps=False)
          >>> together.listed(request).tolist(), together.listed(request._replace(keeps=True)).tolist()
          ([1], [0, 1])
        """
        groups, counts = np.unique(self._groups.of(ranking.listed), return_counts=True)
        return groups if ranking.keeps else groups[counts == self._groups.ranked[groups]]

    def items_of(
        self, ranking: Ranking, found: list[int], scores: list[float]
    ) -> tuple[list[int], list[float], tuple[str, ...]]:
        """The items that a request may be answered with, of the identifiers that were found.

        Args:
          ranking: the request.
          found: numbers of identifiers, best first, -1 where there is none.
          scores: of each.

        Returns:
          As many items as were asked for, where there are so many, their scores, and what is to be said of them.
        """
        listed, removed = frozenset(ranking.listed.tolist()), self._groups.removed
        items, values, more = self._groups.list_row(
            found, scores, lambda item: item not in removed and (item in listed) == ranking.keeps, ranking.k
        )
        if not more:
            return items, values, ()
        are = "item has" if more == 1 else "items have"
        note = f"{more:,} more {are} the identifier and score of the last one: they come later in the catalogue"
        return items, values, (note,)
