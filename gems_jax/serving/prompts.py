"""Prompts of a few requests: the work goes by what they name, not by the size of the catalogue."""

import functools
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np

from gems_jax.data.batching.encoded_table import EncodedTable
from gems_jax.data.batching.prompts import encode_table
from gems_jax.data.batching.wording import named_tokens
from gems_jax.data.dataset.tables import Dataset, Row, Table
from gems_jax.data.raw.blank import is_blank
from gems_jax.data.text.plain_text import plain_reader
from gems_jax.items.tokens import ItemIndex
from gems_jax.models.family import Layout
from gems_jax.serving.catalogue import Ranking


class PromptMaker:
    """Makes tokens of requests, as training made them of rows: `gems_jax.data.batching.prompts.encode_table`.

    Args:
      tokenizer: with the items' tokens.
      dataset: whose items they are.
      items: identifiers of the N items.
      max_length: of a prompt in tokens.
      layout: of the model.
    """

    def __init__(self, tokenizer: Any, dataset: Dataset, items: ItemIndex, max_length: int, layout: Layout):
        self._tokenizer, self._dataset, self._items = tokenizer, dataset, items
        self._max_length, self._layout = max_length, layout
        self._plain, self._named = plain_reader(tokenizer), named_tokens(tokenizer)
        self._unknown = tokenizer.unk_token_id
        self._says = functools.cache(functools.partial(_says_something, tokenizer))
        # Room for the answer is that of the longest identifier, and how items are split off is told by the first.
        self._always = (0, int((items.token_ids >= 0).sum(axis=1).argmax()))

    def encode(self, template: str, requests: Sequence[Ranking]) -> EncodedTable:
        """The prompts of requests of one task.

        Args:
          template: of the task.
          requests: R of them.

        Raises:
          ValueError: as `encode_table`.
        """
        named = sorted({*self._always, *(item for request in requests for item in request.shown)})
        place = {item: position for position, item in enumerate(named)}
        # A row needs a target, which the input does not depend on.
        rows = [Row("", [place[item] for item in one.shown], target=0, query=one.query) for one in requests]
        return encode_table(
            Table.from_rows(requests[0].task, rows),
            self._tokenizer,
            self._items.token_ids[named],
            template,
            self._max_length,
            self._layout,
            titles=[self._dataset.items[item].title for item in named],
            named=self._named,
        )

    def notes(self, template: str, requests: Sequence[Ranking], may_be_cut: bool) -> list[tuple[str, ...]]:
        """What of each request's query the model does not get to read, in sentences.

        Args:
          template: of the task.
          requests: those that were encoded.
          may_be_cut: whether the query of any of these was cut.
        """
        unread = self._unread({one.query for one in requests if one.query})
        if not unread and not may_be_cut:
            return [()] * len(requests)
        return [tuple(self._notes(template, one, one.query in unread, may_be_cut)) for one in requests]

    def _notes(self, template: str, request: Ranking, unread: bool, may_be_cut: bool) -> Iterator[str]:
        if unread:
            yield (
                f"the model's tokenizer knows none of the characters of {request.query!r}: all such queries are one "
                "to it"
            )
        if may_be_cut and self.encode(template, [request]).clipped_queries:
            yield (
                f"the query is too long for items.max_length {self._max_length}: its end is cut off and not searched "
                "for"
            )

    def _unread(self, texts: Collection[str]) -> set[str]:
        """Texts of which the tokenizer knows nothing."""
        tokens = self._plain(list(texts)) if texts else []
        return {text for text, ids in zip(texts, tokens, strict=True) if not self._is_read(ids)}

    def _is_read(self, tokens: Sequence[int]) -> bool:
        known = [token for token in tokens if token != self._unknown]
        # Most tokens say something by themselves; parts of a character do together.
        return any(map(self._says, known)) or not is_blank(self._tokenizer.decode(known))


def _says_something(tokenizer: Any, token: int) -> bool:
    return not is_blank(tokenizer.decode([token]))


def padded(prompts: Sequence[np.ndarray], rows: int, length: int, pad: int) -> dict[str, np.ndarray]:
    """Prompts as inputs of a model, int32 ``[rows, length]``; rows that are left over are padding.

    Example:
      >>> padded([np.array([5, 6])], rows=2, length=3, pad=0)["attention_mask"].tolist()
      [[1, 1, 0], [0, 0, 0]]
    """
    input_ids = np.full((rows, length), pad, np.int32)
    attention_mask = np.zeros((rows, length), np.int32)
    for row, tokens in enumerate(prompts):
        input_ids[row, : len(tokens)] = tokens
        attention_mask[row, : len(tokens)] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}
