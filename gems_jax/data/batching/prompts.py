"""Turning tables into token sequences with the templates of a configuration."""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence, Set
from typing import TYPE_CHECKING, Any

import numpy as np

from gems_jax.data.batching.encoded_table import EncodedTable
from gems_jax.data.batching.layouts import LAYOUTS
from gems_jax.data.batching.titled_rows import TitledRows
from gems_jax.data.batching.wording import HISTORY, TITLES, Pieces, named_tokens, words_around
from gems_jax.data.dataset.tables import Table
from gems_jax.data.raw.ragged import Ragged

if TYPE_CHECKING:
    from gems_jax.items.tokens import ItemIndex
    from gems_jax.models.family import Layout

__all__ = ["EncodedTable", "encode_table", "item_rows", "parse_template"]

FIELDS = ("history", "history_titles", "query")
# Rows whose tokens are put together at a time: what stands beside the result is small.
_ROWS = 65_536

# Makes the array that tokens are written to, from its length.
Allocate = Callable[[int], np.ndarray]


def parse_template(template: str, needed: Sequence[str] = ()) -> list[str | tuple[str]]:
    """The pieces of a template in order: a string as it stands, or a one-tuple naming a field.

    Args:
      template: words with ``{history}``, ``{history_titles}`` and ``{query}`` in them; a literal brace is doubled.
      needed: fields that must occur; titles do for a history.

    Raises:
      ValueError: a field is unknown, missing, repeated or carries a format.

    Example:
      >>> parse_template("bought {history} searches {query}")
      ['bought ', ('history',), ' searches ', ('query',)]
    """
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"template {template!r}: {error}; double a brace that stands for itself") from None
    pieces: list[str | tuple[str]] = []
    for text, name, spec, conversion in parsed:
        if text:
            pieces.append(text)
        if name is None:
            continue
        if name not in FIELDS or spec or conversion:
            raise ValueError(f"template {template!r} names the unknown field {{{name}}}; use {', '.join(FIELDS)}")
        if (name,) in pieces:
            raise ValueError(f"template {template!r} names {{{name}}} twice")
        pieces.append((name,))
    for name in needed:
        if (name,) not in pieces and not (name == "history" and TITLES in pieces):
            raise ValueError(f"template {template!r} needs the field {{{name}}}")
    return pieces


def item_rows(items: Any) -> np.ndarray:
    """int32 ``[N, L]``: the tokens of each item, -1 behind shorter ones; the longest has L.

    Args:
      items: an `ItemIndex`, an array ``[N, L]``, or one token each, ``[N]``.

    Raises:
      ValueError: the shape or type is another, or an item has no token.

    Example:
      >>> item_rows([7, 8]).tolist()
      [[7], [8]]
    """
    rows = np.asarray(getattr(items, "token_ids", items))
    if rows.ndim == 1:
        rows = rows[:, None]
    if rows.ndim != 2 or not rows.shape[1] or (rows.size and not np.issubdtype(rows.dtype, np.integer)):
        raise ValueError(f"item tokens have shape {rows.shape} and dtype {rows.dtype}: expected integers [N] or [N, L]")
    wrong = (rows[:, 0] < 0) | ((rows[:, :-1] < 0) & (rows[:, 1:] >= 0)).any(axis=1)
    if wrong.any():
        item = int(np.argmax(wrong))
        raise ValueError(f"item {item} has tokens {rows[item].tolist()}: expected token ids, then only -1 as padding")
    return np.ascontiguousarray(rows[:, : max(1, int((rows >= 0).sum(axis=1).max(initial=1)))], np.int32)


def encode_table(
    table: Table,
    tokenizer: Any,
    item_token_ids: ItemIndex | np.ndarray | Sequence[int],
    template: str,
    max_length: int,
    layout: Layout = "encoder_decoder",
    allocate: Allocate | None = None,
    titles: Sequence[str] | None = None,
    named: Set[int] | None = None,
) -> EncodedTable:
    """Inputs of all rows: the template with history as item tokens, titles or both, and query as words.

    An encoder's input ends with the end token. A decoder's prompt begins with what the tokenizer puts before a text
    (often a token that marks the beginning) and ends where its answer, the item's tokens and the end token, goes on.

    The tokens are those that the tokenizer makes of the whole text, `gems_jax.data.batching.wording.prompt_text`. A
    template may name special tokens; in queries and titles their names are letters like others
    (`gems_jax.data.text.plain_text.plain_ids`). Where an input would be longer than ``max_length``, the oldest items of
    the history are dropped; a query that leaves no room for the newest item is clipped at its end. If the template
    names titles, the newest item is dropped, too, before a query is clipped.

    Args:
      table: ``R`` rows.
      tokenizer: a Hugging Face tokenizer with an end token.
      item_token_ids: the tokens of each item number: an `ItemIndex`, ``[N, L]`` padded with -1, or ``[N]``.
      template: with ``{history}`` or ``{history_titles}``; a table with queries needs ``{query}`` and may do without.
      max_length: in tokens, an encoder's end token or a decoder's answer included.
      layout: of the model, such as `T5.layout`.
      allocate: makes the int32 array that the tokens are written to from their number; by default in memory.
      titles: the title of each item number, for ``{history_titles}``.
      named: `gems_jax.data.batching.wording.named_tokens` of the tokenizer, from callers that come often: to list them
        takes the longer, the more items there are.

    Raises:
      ValueError: the template does not fit the table or the length, an item has no token, or a query is no Unicode
        text.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    has_queries = any(table.queries)
    pieces = parse_template(template, ["query"] if has_queries else ["history"])
    if not has_queries and ("query",) in pieces:
        raise ValueError(f"template {template!r} of task {table.task!r} names {{query}}, but its table has no queries")
    items = item_rows(item_token_ids)
    highest = max(int(table.target.max(initial=-1)), int(table.history.max(initial=-1)))
    if highest >= len(items):
        raise ValueError(f"table {table.task!r} has item number {highest}, but only {len(items)} item tokens")
    lowest = min(int(table.target.min(initial=0)), int(table.history.min(initial=0)))
    if lowest < 0:
        raise ValueError(f"table {table.task!r} has item number {lowest}; item numbers begin with 0")
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no end token (eos_token); every input ends with it")
    around = LAYOUTS[layout].around(tokenizer)
    answer = items.shape[1] + 1 if LAYOUTS[layout].answer_follows else 0
    length = max_length - sum(map(len, around)) - answer
    named = named_tokens(tokenizer) if named is None else named
    rows: _PromptRows | TitledRows
    if TITLES in pieces:
        if titles is None or len(titles) < len(items):
            raise ValueError(f"template {template!r} names {{history_titles}}: give a title for each of the items")
        rows = TitledRows(table, tokenizer, items, pieces, length, titles, named)
    else:
        rows = _PromptRows(table, tokenizer, items, pieces, length, named)
    if rows.room < items.shape[1]:
        raise ValueError(
            f"template {template!r} alone fills max_length {max_length} (one item must fit, too); raise it or shorten "
            "the template"
        )
    offsets = np.zeros(len(table) + 1, np.int64)
    np.cumsum(rows.lengths + sum(map(len, around)), out=offsets[1:])
    tokens = np.empty(offsets[-1], np.int32) if allocate is None else allocate(int(offsets[-1]))
    for start in range(0, len(table), _ROWS):
        block = slice(start, min(start + _ROWS, len(table)))
        first, last = (_repeated(part, block.stop - block.start) for part in around)
        tokens[offsets[block.start] : offsets[block.stop]] = _joined([first, *rows.parts(block), last])
    return EncodedTable(
        task=table.task,
        tokens=tokens,
        offsets=offsets,
        target_tokens=items[table.target],
        dropped_items=rows.dropped,
        clipped_queries=rows.clipped,
        layout=layout,
    )


class _PromptRows:
    """Chooses what of each row's history and query goes into its input, and gives its tokens.

    Attributes:
      room: tokens left for items where the words need most.
      lengths: int64, tokens of each row.
      dropped, clipped: items left out, queries cut.
    """

    def __init__(
        self, table: Table, tokenizer: Any, items: np.ndarray, pieces: Pieces, length: int, named: Set[int]
    ) -> None:
        self._table = table
        first, self._last = table.offsets[:-1], table.offsets[1:]
        some = (self._last > first) if HISTORY in pieces else np.zeros(len(table), bool)
        numbers: dict[tuple[bool, str], int] = {(HISTORY in pieces, ""): 0}
        pairs = zip(some.tolist(), table.queries, strict=True)
        self._words_of = np.fromiter((numbers.setdefault(pair, len(numbers)) for pair in pairs), np.int64)
        self._words = words_around(pieces, list(numbers), tokenizer, int(items[0, 0]) if len(items) else 0, named)

        spots = self._words.query
        queries = spots[:, 2] - spots[:, 1]
        fixed = self._words.before.lengths + self._words.after.lengths - queries
        self.room = length - int(fixed.max())
        widths = (items >= 0).sum(axis=1)
        self._items = Ragged.from_lengths(items[items >= 0], widths)
        # Tokens of all histories up to each item.
        reach = np.zeros(len(table.history) + 1, np.int64)
        np.cumsum(widths[table.history], out=reach[1:])
        newest = np.zeros(len(table), np.int64)
        newest[some] = widths[table.history[self._last[some] - 1]]
        whole, room = queries[self._words_of], np.maximum(length - fixed[self._words_of], 0)
        kept = np.minimum(whole, np.maximum(room - newest, 0))
        self._cut = whole - kept
        self.clipped = int((self._cut > 0).sum())
        fits = np.searchsorted(reach, reach[self._last] - (room - kept), side="left")
        self._first = np.where(some, np.maximum(first, fits), self._last)
        self.dropped = int((self._first - first)[some].sum())
        self.lengths = reach[self._last] - reach[self._first] + fixed[self._words_of] + kept

    def parts(self, rows: slice) -> list[Ragged]:
        """The parts of each row, one after the other: the words before the history, its items, the words after it."""
        lists = Ragged(self._table.history, np.zeros(1, np.int64))
        events = lists.slices(self._first[rows], self._last[rows] - self._first[rows])
        tokens = self._items.take(events.values)
        history = Ragged(tokens.values, tokens.offsets[events.offsets])
        return [*self._side(0, rows), history, *self._side(1, rows)]

    def _side(self, side: int, rows: slice) -> list[Ragged]:
        """The words of a side up to where the query is cut, and those behind it."""
        number = self._words_of[rows]
        words = self._words.after if side else self._words.before
        start, length = words.offsets[:-1][number], words.lengths[number]
        holds, _, behind = self._words.query[number].T
        behind = np.where(holds == side, behind, length)
        kept = behind - np.where(holds == side, self._cut[rows], 0)
        return [words.slices(start, kept), words.slices(start + behind, length - behind)]


def _repeated(tokens: list[int], count: int) -> Ragged:
    """The same tokens in all rows."""
    return Ragged.from_lengths(np.tile(np.asarray(tokens, np.int32), count), np.full(count, len(tokens)))


def _joined(parts: list[Ragged]) -> np.ndarray:
    """All rows one after the other, of each first its part of the first, then its part of the second, and so on."""
    lengths = np.stack([part.lengths for part in parts], axis=1)
    offsets = np.cumsum(lengths.reshape(-1)) - lengths.reshape(-1)
    result = np.empty(int(lengths.sum()), np.int32)
    for part, starts in zip(parts, offsets.reshape(lengths.shape).T, strict=True):
        result[np.arange(len(part.values)) + np.repeat(starts - part.offsets[:-1], part.lengths)] = part.values
    return result
