"""Rows of prompts that tell a history by its titles: each is tokenised as one text, as often as it takes to fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from typing import Any

import numpy as np

from gems_jax.data.batching.wording import (
    HISTORY,
    QUERY,
    TITLES,
    Pieces,
    count_named,
    joined_titles,
    prompt_text,
    spelled,
    tokenise,
)
from gems_jax.data.dataset.tables import Table
from gems_jax.data.raw.ragged import Ragged
from gems_jax.data.text.plain_text import check_unicode

# Rows that are tokenised in one call.
_ROWS = 8_192
# Of a query, that make a token: a guess.
_LETTERS = 4
# Numbers that are tried beside a guess.
_NEAR = 3


class TitledRows:
    """What of each row's history and query goes into its input, and the tokens of it.

    The oldest events are dropped until a row fits, the newest too where there is no room for its title; then the query
    is cut at its end.

    Attributes:
      room: tokens left beside the template's words.
      lengths: int64, tokens of each row.
      dropped, clipped: items left out, queries cut.
    """

    def __init__(
        self,
        table: Table,
        tokenizer: Any,
        items: np.ndarray,
        pieces: Pieces,
        length: int,
        titles: Sequence[str],
        named: Set[int],
    ) -> None:
        for title in titles:
            check_unicode(title, "the title")
        for query in table.queries:
            check_unicode(query, "the query")
        self._table, self._tokenizer, self._pieces, self._length = table, tokenizer, pieces, length
        self._titles = titles
        self._queries = [query.strip() for query in table.queries]
        self._ids = [row[row >= 0].tolist() for row in items] if HISTORY in pieces else []
        self._names = [tokenizer.convert_ids_to_tokens(ids) for ids in self._ids]
        self._named = named
        (bare,) = tokenise([("", prompt_text(pieces, "", ""), "")], tokenizer)
        self._named_words = count_named(bare, self._named)
        self.room = length - len(bare)
        self._guess = self._likely(titles)
        self.dropped = self.clipped = 0
        self._tokens = Ragged.empty(0)
        if self.room >= 0:
            blocks = (range(start, min(start + _ROWS, len(table))) for start in range(0, len(table), _ROWS))
            self._tokens = Ragged.join([self._fitting(np.asarray(block)) for block in blocks])

    @property
    def lengths(self) -> np.ndarray:
        return self._tokens.lengths

    def parts(self, rows: slice) -> list[Ragged]:
        """The tokens of consecutive rows."""
        return [self._tokens.rows(rows)]

    def _likely(self, titles: Sequence[str]) -> np.ndarray:
        """Of each row how many events are likely to fit, by the tokens of each title alone."""
        table = self._table
        costs = [
            len(ids) for ids in tokenise([("", joined_titles(["-", title]), "") for title in titles], self._tokenizer)
        ]
        if self._ids:
            costs = [cost + len(ids) for cost, ids in zip(costs, self._ids, strict=False)]
        reach = np.zeros(len(table.history) + 1, np.int64)
        np.cumsum(np.asarray(costs, np.int64)[table.history], out=reach[1:])
        words = np.asarray([len(query) // _LETTERS for query in self._queries], np.int64)
        first = np.searchsorted(reach, reach[table.offsets[1:]] - (self.room - words), side="left")
        return np.asarray(table.offsets[1:] - first)

    def _fitting(self, rows: np.ndarray) -> Ragged:
        """The tokens of rows with as many events, and then as much of the query, as fit."""
        kept_tokens: list[list[int]] = [[] for _ in rows]
        letters = np.asarray([len(self._queries[row]) for row in rows])
        counts = np.diff(self._table.offsets)[rows]

        def events_fit(chosen: np.ndarray, events: np.ndarray) -> np.ndarray:
            return self._try(rows, kept_tokens, chosen, events, letters[chosen])

        # An event has a token or more.
        events = _largest(np.minimum(counts, self.room), self._guess[rows], events_fit)
        self.dropped += int((counts - np.maximum(events, 0)).sum())
        long = np.flatnonzero(events < 0)
        self.clipped += len(long)

        def letters_fit(chosen: np.ndarray, kept: np.ndarray) -> np.ndarray:
            return self._try(rows, kept_tokens, long[chosen], np.zeros_like(kept), kept)

        _largest(letters[long], letters[long] // 2, letters_fit)
        return Ragged.of(kept_tokens)

    def _try(
        self,
        rows: np.ndarray,
        kept_tokens: list[list[int]],
        chosen: np.ndarray,
        events: np.ndarray,
        letters: np.ndarray,
    ) -> np.ndarray:
        """Whether some of the rows fit with these numbers of events and letters; the tokens of those are kept."""
        tokens = self._tokenised(rows[chosen].tolist(), events.tolist(), letters.tolist())
        for row, ids in zip(chosen.tolist(), tokens, strict=True):
            if len(ids) <= self._length:
                kept_tokens[row] = ids
        return np.asarray([len(ids) <= self._length for ids in tokens], bool)

    def _tokenised(self, rows: list[int], events: list[int], letters: list[int]) -> list[list[int]]:
        shown = [self._table.history_of(row).tolist() for row in rows]
        shown = [items[len(items) - count :] for items, count in zip(shown, events, strict=True)]
        queries = [self._queries[row][:count] for row, count in zip(rows, letters, strict=True)]
        texts = [self._text(items, query) for items, query in zip(shown, queries, strict=True)]
        tokens = tokenise([("", text, "") for text in texts], self._tokenizer)
        for i, (items, query) in enumerate(zip(shown, queries, strict=True)):
            named = sum(count_named(self._ids[item], self._named) for item in items) if self._ids else 0
            if count_named(tokens[i], self._named) != self._named_words + named:
                tokens[i] = self._spelled(items, query)
        return tokens

    def _text(self, items: list[int], query: str) -> str:
        history = " ".join("".join(self._names[item]) for item in items) if self._names else ""
        return prompt_text(self._pieces, history, query, joined_titles(self._titles[item] for item in items))

    def _spelled(self, items: list[int], query: str) -> list[int]:
        """The tokens of a row whose title or query spells the name of a token."""
        words = {TITLES: joined_titles(self._titles[item] for item in items), QUERY: query}
        if HISTORY not in self._pieces or not items:
            pieces = [piece for piece in self._pieces if piece != HISTORY]
            return spelled(pieces, words, self._tokenizer, ("", ""))
        index = self._pieces.index(HISTORY)
        before, after = self._pieces[:index], self._pieces[index + 1 :]
        return [
            *spelled(before, words, self._tokenizer, ("", self._names[items[0]][0])),
            *(token for item in items for token in self._ids[item]),
            *spelled(after, words, self._tokenizer, (self._names[items[-1]][-1], "")),
        ]


def _largest(most: np.ndarray, guess: np.ndarray, fits: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """The largest number of each row that fits, from 0 to ``most``; -1 where 0 does not.

    Args:
      most: int ``[R]``.
      guess: int ``[R]``, tried first; any values.
      fits: takes rows and a number of each, says whether they fit; what fits, fits with a smaller number, too.

    Example:
      >>> limits = np.array([5, 9, 0])
      >>> _largest(np.array([9, 3, 2]), np.array([4, 3, 1]), lambda rows, tried: tried < limits[rows]).tolist()
      [4, 3, -1]
    """
    low, high, tried = np.full(len(most), -1), most.copy(), np.clip(guess, 0, most)
    steps = 0
    while len(chosen := np.flatnonzero(low < high)):
        fit = fits(chosen, tried[chosen])
        low[chosen[fit]] = tried[chosen[fit]]
        high[chosen[~fit]] = tried[chosen[~fit]] - 1
        steps += 1
        near = np.where(low == tried, low + 1, high)
        tried = np.maximum(near, 0) if steps < _NEAR else (low + high + 1) // 2
    return low
