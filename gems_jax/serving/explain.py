"""Why an item is where it is in an answer: what each item of the history does to its score."""

from typing import Any, NamedTuple

import numpy as np

from gems_jax.serving.answers import Answer
from gems_jax.serving.catalogue import Catalogue, Ranking

# The newest items of a history that are left out in turn.
MOST = 20


class Question(NamedTuple):
    """The rankings that answer it: of one item, after the whole history and after the history without an item each.

    Args:
      rankings: the whole one first.
      without: the items that are left out of the others.
    """

    rankings: list[Ranking]
    without: list[int]


def ask(ranking: Ranking, item: int, most: int = MOST) -> Question:
    """What to rank to find out what a history does to the score of an item.

    Args:
      ranking: the request that had the item in its answer.
      item: number of the item.
      most: items of the history that are left out in turn, the newest.

    Example:
      >>> request = Ranking("rec", "", 10, (3, 5, 3), frozenset({3, 5}), np.zeros(0, np.int32), False)
      >>> [one.shown for one in ask(request, 7).rankings]
      [(3, 5, 3), (3, 3), (5,)]
    """
    alone = ranking._replace(k=1, listed=np.asarray([item], np.int32), keeps=True)
    without = list(dict.fromkeys(reversed(ranking.shown)))[:most][::-1]
    left = [tuple(one for one in ranking.shown if one != item) for item in without]
    return Question([alone, *(alone._replace(shown=shown) for shown in left)], without)


def explained(question: Question, answers: list[Answer], catalogue: Catalogue) -> dict[str, Any]:
    """The score of the item, and by how much each item of the history has moved it, those first that moved it most.

    Args:
      question: see `ask`.
      answers: to its rankings.
      catalogue: of the items.

    Returns:
      JSON values: ``score`` and ``history``, of each item ``item_id``, ``title`` and ``change``, the score minus that
      after the history without it.
    """
    score, *others = (answer.items[0].score for answer in answers)
    moved = [
        {"item_id": item.item_id, "title": item.title, "change": score - other}
        for item, other in zip((catalogue.dataset.items[item] for item in question.without), others, strict=True)
    ]
    return {"score": score, "history": sorted(moved, key=lambda one: -abs(one["change"]))}
