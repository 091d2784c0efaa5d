"""Turning tables into token sequences with the templates of a configuration."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gems_jax.data.tables import Table

FIELDS = ("history", "query")


@dataclass(frozen=True)
class EncodedTable:
    """A table as tokens.

    Args:
        task: name of the task.
        tokens: int32, all inputs one after the other, each ending in the end token.
        offsets: int64 `[R + 1]`; the input of row `r` is `tokens[offsets[r]:offsets[r + 1]]`.
        target_tokens: int32 `[R]`, the target item's token.
        dropped_items: history items left out, oldest first, because an input would have been too long.
        clipped_queries: rows whose query lost words at its end for the same reason.
    """

    task: str
    tokens: np.ndarray
    offsets: np.ndarray
    target_tokens: np.ndarray
    dropped_items: int = 0
    clipped_queries: int = 0

    def __len__(self) -> int:
        return len(self.target_tokens)

    def lengths(self) -> np.ndarray:
        """int64 `[R]` tokens per input, the end token included."""
        return np.diff(self.offsets)

    def tokens_of(self, row: int) -> np.ndarray:
        """The tokens of one input."""
        return self.tokens[self.offsets[row] : self.offsets[row + 1]]


def parse_template(template: str, needed: Sequence[str] = ()) -> list[str | tuple[str]]:
    """The pieces of a template in order: a string as it stands, or a one-tuple naming a field.

    Example:
        >>> parse_template("bought {history} searches {query}")
        ['bought ', ('history',), ' searches ', ('query',)]

    Args:
        template: words with `{history}` and `{query}` in them; a literal brace is doubled.
        needed: fields that must occur.

    Raises:
        ValueError: a field is unknown, missing, repeated or carries a format.
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
            raise ValueError(f"template {template!r} names the unknown field {{{name}}}; use {{history}} and {{query}}")
        if (name,) in pieces:
            raise ValueError(f"template {template!r} names {{{name}}} twice")
        pieces.append((name,))
    for name in needed:
        if (name,) not in pieces:
            raise ValueError(f"template {template!r} needs the field {{{name}}}")
    return pieces


def encode_table(
    table: Table, tokenizer: Any, item_token_ids: Sequence[int], template: str, max_length: int
) -> EncodedTable:
    """Inputs of all rows: the template with history as item tokens and query as words, then the end token.

    Template pieces and distinct queries are tokenised once and concatenated. Where an input would be longer
    than `max_length`, the oldest items of the history are dropped; a query that leaves no room for the
    newest item is clipped at its end.

    Args:
        table: `R` rows.
        tokenizer: a Hugging Face tokenizer with an end token.
        item_token_ids: `[N]`, the token of each item number.
        template: with `{history}`; a table with queries needs `{query}` and may leave `{history}` out.
        max_length: in tokens, the end token included.

    Raises:
        ValueError: the template does not fit the table or the length, or an item has no token.
    """
    has_queries = any(table.queries)
    pieces = parse_template(template, ["query"] if has_queries else ["history"])
    if not has_queries and ("query",) in pieces:
        raise ValueError(f"template {template!r} of task {table.task!r} names {{query}}, but its table has no queries")
    token_of_item = np.asarray(item_token_ids, np.int32)
    highest = max(int(table.target.max(initial=-1)), int(table.history.max(initial=-1)))
    if highest >= len(token_of_item):
        raise ValueError(f"table {table.task!r} has item number {highest}, but only {len(token_of_item)} item tokens")
    end = _end_token(tokenizer)
    encoded_pieces = _tokenise([piece for piece in pieces if isinstance(piece, str)], tokenizer)
    encoded_queries = _tokenise(sorted(set(table.queries)), tokenizer)
    keeps_history = ("history",) in pieces
    room = max_length - 1 - sum(len(tokens) for tokens in encoded_pieces.values())
    if room < 1:
        raise ValueError(f"template {template!r} alone fills max_length {max_length}; raise it or shorten the template")

    history_tokens = token_of_item[table.history].tolist()
    offsets = table.offsets.tolist()
    flat: list[int] = []
    ends = [0]
    dropped = clipped = 0
    for row, query_text in enumerate(table.queries):
        first, last = offsets[row], offsets[row + 1]
        query = encoded_queries[query_text]
        query_room = room - 1 if keeps_history and last > first else room
        if len(query) > query_room:
            query = query[:query_room]
            clipped += 1
        if keeps_history:
            kept = min(last - first, room - len(query))
            dropped += last - first - kept
            first = last - kept
        for piece in pieces:
            if isinstance(piece, str):
                flat += encoded_pieces[piece]
            else:
                flat += query if piece == ("query",) else history_tokens[first:last]
        flat.append(end)
        ends.append(len(flat))
    return EncodedTable(
        task=table.task,
        tokens=np.asarray(flat, np.int32),
        offsets=np.asarray(ends, np.int64),
        target_tokens=token_of_item[table.target],
        dropped_items=dropped,
        clipped_queries=clipped,
    )


def _tokenise(texts: Sequence[str], tokenizer: Any) -> dict[str, list[int]]:
    if not texts:
        return {}
    ids = tokenizer([text.strip() for text in texts], add_special_tokens=False)["input_ids"]
    return {text: list(tokens) for text, tokens in zip(texts, ids, strict=True)}


def _end_token(tokenizer: Any) -> int:
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no end token (eos_token); every input ends with it")
    return int(tokenizer.eos_token_id)
