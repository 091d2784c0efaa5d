"""Answers as lines of JSON, written from what a search found: most of a line is text of the catalogue, made once."""

import functools
import itertools
import json
from collections.abc import Iterator, Sequence

import numpy as np

from gems_jax.data.dataset.tables import Item
from gems_jax.serving.answers import Found

# Items whose id and title are kept as they are written.
_KEPT = 1 << 16
# Behind a score, by whether the item is known.
_ENDS = (', "known": false}', ', "known": true}')
# Sizes of broken numbers that pyarrow and Python write alike.
_LEAST, _MOST = 1e-4, 1e9


class AnswerLines:
    """Lines of answers, as `json.dumps` writes their ``row``, ``id`` if there is one, and `Answer.as_json`.

    Args:
      items: of the catalogue.

    Example:
      >>> lines = AnswerLines([Item("B00", "Sock"), Item("B01", "Red shoe")])
      >>> lines.of([(7, None)], [Found([1], [-1.25], [True])])
      ['{"row": 7, "items": [{"item_id": "B01", "title": "Red shoe", "score": -1.25, "known": true}], "notes": []}']
    """

    def __init__(self, items: Sequence[Item]):
        self._items = items
        self._begun = functools.lru_cache(_KEPT)(self._write)

    def of(self, heads: Sequence[tuple[int, str | int | None]], found: Sequence[Found]) -> list[str]:
        """The answers to some requests.

        Args:
          heads: row of each, and its id; ``None``: it has none.
          found: for each, in item numbers.
        """
        scores = iter(number_texts([score for one in found for score in one.scores]))
        return [self._line(*head, one, scores) for head, one in zip(heads, found, strict=True)]

    def _line(self, row: int, name: str | int | None, found: Found, scores: Iterator[str]) -> str:
        """A line, which takes the texts of its scores from ``scores``."""
        own = itertools.islice(scores, len(found.items))
        items = [
            begun + score + _ENDS[known]
            for begun, known, score in zip(map(self._begun, found.items), found.known, own, strict=True)
        ]
        head = f'{{"row": {row}' if name is None else f'{{"row": {row}, "id": {json.dumps(name)}'
        notes = json.dumps(found.notes) if found.notes else "[]"
        return f'{head}, "items": [{", ".join(items)}], "notes": {notes}}}'

    def _write(self, number: int) -> str:
        """An item up to its score."""
        item = self._items[number]
        return f'{json.dumps({"item_id": item.item_id, "title": item.title})[:-1]}, "score": '


def number_texts(numbers: Sequence[float]) -> list[str]:
    """Numbers as `json.dumps` writes them, of most by pyarrow, which takes a third of the time for many.

    Example:
      >>> number_texts([-1.25, 3.0, 1e-05, float("-inf")])
      ['-1.25', '3.0', '1e-05', '-Infinity']
    """
    import pyarrow as pa

    values = np.asarray(numbers, np.float64)
    texts: list[str] = pa.array(values).cast(pa.string()).to_pylist()
    size = np.abs(values)
    # pyarrow's exponents differ, and its whole numbers have no point.
    alike = (size >= _LEAST) & (size < _MOST) & (size != np.floor(size))
    for place in np.flatnonzero(~alike).tolist():
        texts[place] = json.dumps(numbers[place])
    return texts
