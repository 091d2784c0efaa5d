"""What a request is answered with: items, best first, and what people should know of the answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from gems_jax.data.dataset.tables import Item


class RankedItem(NamedTuple):
    """An item of a ranking.

    Args:
      item_id, title: of the catalogue.
      score: mean log-probability of its tokens and the end token.
      known: whether it is in the user's history.
    """

    item_id: str
    title: str
    score: float
    known: bool


class Found(NamedTuple):
    """What a search found for a request, in item numbers.

    Args:
      items: best first.
      scores: of each, see `RankedItem`.
      known: of each, whether it is in the user's history.
      notes: see `Answer`.
    """

    items: list[int]
    scores: list[float]
    known: list[bool]
    notes: tuple[str, ...] = ()

    def answer(self, items: Sequence[Item]) -> "Answer":
        """With the ids and titles of the catalogue's items."""
        of_items = [items[number] for number in self.items]
        rows = zip(of_items, self.scores, self.known, strict=True)
        return Answer(tuple(RankedItem(of.item_id, of.title, score, known) for of, score, known in rows), self.notes)


@dataclass(frozen=True)
class Answer:
    """The answer to a request.

    Args:
      items: best first.
      notes: sentences for people, such as that the end of a query was cut off.

    Example:
      >>> Answer((RankedItem("B01", "Red shoe", -1.25, False),)).as_json()["items"]
      [{'item_id': 'B01', 'title': 'Red shoe', 'score': -1.25, 'known': False}]
    """

    items: tuple[RankedItem, ...]
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        return {"items": [item._asdict() for item in self.items], "notes": list(self.notes)}


def as_lines(ranked: Sequence[RankedItem]) -> str:
    """A line an item, for a terminal.

    Example:
      >>> print(as_lines([RankedItem("B01", "Red shoe", -1.25, False), RankedItem("B02", "Sock", -2.0, True)]))
       1. Red shoe  (B01, -1.250)
       2. Sock  (B02, -2.000, in the history)
    """
    return "\n".join(
        f"{rank:2d}. {item.title}  ({item.item_id}, {item.score:.3f}{', in the history' if item.known else ''})"
        for rank, item in enumerate(ranked, 1)
    )
