"""The words of a prompt as tokens: as the tokenizer splits the whole text, not piece by piece."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from gems_jax.data.raw.ragged import Ragged
from gems_jax.data.text.plain_text import check_unicode, plain_ids

# Of a template, as `gems_jax.data.batching.prompts.parse_template` gives them.
Pieces = Sequence[str | tuple[str]]
HISTORY, QUERY = ("history",), ("query",)
# Stands before words whose tokens are those behind another word.
_WORD = "a"


class Words(NamedTuple):
    """Tokens of `K` texts around a history.

    Args:
        before, after: the history; without one all is `before`.
        query: int64 `[K, 3]`, where the query's tokens stand: 0 in `before` or 1 in `after`, the index of the first
            and the index behind the last.
    """

    before: Ragged
    after: Ragged
    query: np.ndarray


def prompt_text(pieces: Pieces, history: str, query: str) -> str:
    """The text that a template stands for, without spaces at its ends.

    Example:
        >>> prompt_text(["search: ", ("query",), " history: ", ("history",)], "<item_1> <item_2>", " tea ")
        'search: tea history: <item_1> <item_2>'

    Args:
        pieces: of the template.
        history: tokens of items.
        query: words; spaces at its ends do not count.
    """
    words = {HISTORY: history, QUERY: query.strip()}
    return "".join(piece if isinstance(piece, str) else words[piece] for piece in pieces).strip()


def words_around(pieces: Pieces, texts: Sequence[tuple[bool, str]], tokenizer: Any, item: int) -> Words:
    """The tokens of `prompt_text` but for the history's, which the tokenizer splits off first.

    Where a query spells the name of a token, its letters' tokens stand between those of the words around it.

    Args:
        pieces: of the template.
        texts: of each of `K` texts whether it has a history, and its query.
        tokenizer: a Hugging Face tokenizer.
        item: one of the tokens that histories consist of.

    Raises:
        ValueError: a query is no Unicode text.
    """
    for _, query in texts:
        check_unicode(query, "the query")
    numbers = {has: [number for number, text in enumerate(texts) if text[0] == has] for has in (True, False)}
    tokens: list[list[list[int]]] = [[[]] * len(texts), [[]] * len(texts)]
    spots = np.zeros((len(texts), 3), np.int64)
    named = _named_tokens(tokenizer)
    for has_history, chosen in numbers.items():
        if not chosen:
            continue
        index = pieces.index(HISTORY) if has_history else len(pieces)
        token = _splitting(item, tokenizer) if has_history else ""
        queries = [texts[number][1] for number in chosen]
        for side, part in enumerate((pieces[:index], pieces[index + 1 :])):
            around = (token, "") if side else ("", token)
            tokenised = _tokenise(
                [(around[0], prompt_text(part, "", query), around[1]) for query in queries], tokenizer
            )
            ends = _ends(part, tokenizer, around[0]) if QUERY in part else None
            for number, query, ids in zip(chosen, queries, tokenised, strict=True):
                if ends is not None:
                    ids = _spelled(ids, part, query, ends, named, tokenizer)
                    start = _common(ids, ends[0])
                    behind = min(_common(ids[::-1], ends[1][::-1]), len(ids) - start)
                    spots[number] = side, start, len(ids) - behind
                tokens[side][number] = ids
    return Words(Ragged.of(tokens[0]), Ragged.of(tokens[1]), spots)


def _named_tokens(tokenizer: Any) -> set[int]:
    """Tokens that a text can name, but for the one of unknown letters."""
    return set(getattr(tokenizer, "added_tokens_decoder", ())) - {getattr(tokenizer, "unk_token_id", None)}


def _spelled(
    ids: list[int], pieces: Pieces, query: str, ends: tuple[list[int], list[int]], named: set[int], tokenizer: Any
) -> list[int]:
    """The tokens of a text as they are, or with letters for names if the query adds named tokens to the template's."""
    first, last = ends
    if sum(token in named for token in ids) == sum(token in named for token in [*first, *last]):
        return ids
    before = pieces[pieces.index(QUERY) - 1] if pieces.index(QUERY) else ""
    space = " " if isinstance(before, str) and before[-1:].isspace() and first else ""
    return [*first, *plain_ids([space + query.strip()], tokenizer)[0], *last]


def _ends(pieces: Pieces, tokenizer: Any, ahead: str) -> tuple[list[int], list[int]]:
    """The tokens before a query and those behind it."""
    index = pieces.index(QUERY)
    first, last = ("".join(x for x in part if isinstance(x, str)) for part in (pieces[:index], pieces[index + 1 :]))
    behind_word, word = _tokenise([("", _WORD + last.rstrip(), ""), ("", _WORD, "")], tokenizer)
    return _tokenise([(ahead, first.strip(), "")], tokenizer)[0], behind_word[len(word) :]


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two lists begin with together."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(first), len(second)))


def _splitting(item: int, tokenizer: Any) -> str:
    """An item's token as text, if the tokenizer finds it in one; else nothing."""
    names = getattr(tokenizer, "convert_ids_to_tokens", None)
    token = names(item) if names else None
    is_one_token = token is not None and list(tokenizer(token, add_special_tokens=False)["input_ids"]) == [item]
    return str(token) if is_one_token else ""


def _tokenise(texts: Sequence[tuple[str, str, str]], tokenizer: Any) -> list[list[int]]:
    """The tokens of each text's middle part, where it stands in the text."""
    if not texts:
        return []
    joined = ["".join(parts) for parts in texts]
    ids = tokenizer(joined, add_special_tokens=False)["input_ids"]
    pairs = zip(ids, texts, strict=True)
    return [list(tokens[bool(ahead) : len(tokens) - bool(behind)]) for tokens, (ahead, _, behind) in pairs]
