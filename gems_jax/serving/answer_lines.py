"""Answers as lines of JSON, written from what a search found: most of a line is text of the catalogue, made once."""

import functools
import json
import math
from collections.abc import Sequence

from gems_jax.data.dataset.tables import Item
from gems_jax.serving.answers import Found

# Items whose id and title are kept as they are written.
_KEPT = 1 << 16
# Behind a score, by whether the item is known.
_ENDS = (', "known": false}', ', "known": true}')


class AnswerLines:
    """Lines of answers, as `json.dumps` writes their ``row``, ``id`` if there is one, and `Answer.as_json`.

    Args:
      items: of the catalogue.

    Example:
      >>> lines = AnswerLines([Item("B00", "Sock"), Item("B01", "Red shoe")])
      >>> lines.line(7, None, Found([1], [-1.25], [True]))
      '{"row": 7, "items": [{"item_id": "B01", "title": "Red shoe", "score": -1.25, "known": true}], "notes": []}'
    """

    def __init__(self, items: Sequence[Item]):
        self._items = items
        self._begun = functools.lru_cache(_KEPT)(self._write)

    def line(self, row: int, name: str | int | None, found: Found) -> str:
        """The answer to a request.

        Args:
          row: of the request.
          name: its id; ``None``: it has none.
          found: in item numbers.
        """
        # A sum is finite if all scores are.
        written = repr if math.isfinite(sum(found.scores)) else json.dumps
        items = [
            begun + score + _ENDS[known]
            for begun, score, known in zip(
                map(self._begun, found.items), map(written, found.scores), found.known, strict=True
            )
        ]
        head = f'{{"row": {row}' if name is None else f'{{"row": {row}, "id": {json.dumps(name)}'
        notes = json.dumps(found.notes) if found.notes else "[]"
        return f'{head}, "items": [{", ".join(items)}], "notes": {notes}}}'

    def _write(self, number: int) -> str:
        """An item up to its score."""
        item = self._items[number]
        return f'{json.dumps({"item_id": item.item_id, "title": item.title})[:-1]}, "score": '
