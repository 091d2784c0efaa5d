"""Prompts of a few requests: the work goes by what they name, not by the size of the catalogue."""

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from gems_jax.data.batching.encoded_table import EncodedTable
from gems_jax.data.batching.prompts import encode_table
from gems_jax.data.batching.wording import named_tokens
from gems_jax.data.dataset.tables import Dataset, Table
from gems_jax.data.raw.blank import is_blank
from gems_jax.data.raw.ragged import Ragged
from gems_jax.data.text.plain_text import plain_reader
from gems_jax.items.tokens import ItemIndex
from gems_jax.models.family import Layout
from gems_jax.serving.catalogue import Ranking
from gems_jax.serving.remembered import Remembered


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
        self._tokenizer, self._dataset, self._items = _Tokenizer(tokenizer), dataset, items
        self._max_length, self._layout = max_length, layout
        self._plain, self._named = plain_reader(tokenizer), named_tokens(tokenizer)
        self._unknown = tokenizer.unk_token_id
        self._are_read = Remembered(lambda texts: map(self._is_read, self._plain(texts)))
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
        shown = itertools.chain(self._always, *(one.shown for one in requests))
        named, places = np.unique(np.fromiter(shown, np.int64), return_inverse=True)
        places = places[len(self._always) :].astype(np.int32)
        histories = Ragged.from_lengths(places, np.asarray([len(one.shown) for one in requests]))
        # A row needs a target, which the input does not depend on.
        targets = np.zeros(len(requests), np.int32)
        queries = [one.query for one in requests]
        return encode_table(
            Table(requests[0].task, [""] * len(requests), histories.values, histories.offsets, targets, queries),
            self._tokenizer,
            self._items.token_ids[named],
            template,
            self._max_length,
            self._layout,
            titles=[self._dataset.items[item].title for item in named.tolist()],
            named=self._named,
        )

    def notes(self, template: str, requests: Sequence[Ranking], may_be_cut: bool) -> list[tuple[str, ...]]:
        """What of each request's query the model does not get to read, in sentences.

        Args:
          template: of the task.
          requests: those that were encoded.
          may_be_cut: whether the query of any of these was cut.
        """
        texts = list(dict.fromkeys(one.query for one in requests if one.query))
        unread = {text for text, is_read in zip(texts, self._are_read(texts), strict=True) if not is_read}
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

    def _is_read(self, tokens: Sequence[int]) -> bool:
        """Whether the tokenizer knows anything of a text with these tokens."""
        known = [token for token in tokens if token != self._unknown]
        # Most tokens say something by themselves; parts of a character do together.
        return any(map(self._says, known)) or not is_blank(self._tokenizer.decode(known))


class _Tokenizer:
    """A tokenizer that keeps the tokens of texts which it was asked for lately."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self._ids = Remembered(lambda texts: tokenizer(texts, add_special_tokens=False)["input_ids"])

    def __call__(self, text: str | list[str], **options: Any) -> Any:
        if options != {"add_special_tokens": False}:
            return self._tokenizer(text, **options)
        ids = self._ids([text] if isinstance(text, str) else text)
        return {"input_ids": ids[0] if isinstance(text, str) else ids}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


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
