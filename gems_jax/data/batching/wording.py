"""The words of a prompt as tokens: as the tokenizer splits the whole text, not piece by piece."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, NamedTuple

import numpy as np

from gems_jax.data.raw.ragged import Ragged
from gems_jax.data.text.plain_text import check_unicode, plain_ids

# The pieces of a template, as `gems_jax.data.batching.prompts.parse_template` gives them.
Field = tuple[str]
Pieces = Sequence[str | Field]
HISTORY, TITLES, QUERY = ("history",), ("history_titles",), ("query",)
# Stands before words whose tokens are those behind another word.
_WORD = "a"


class Words(NamedTuple):
    """Tokens of ``K`` texts around a history.

    Args:
      before, after: the history; without one all is ``before``.
      query: int64 ``[K, 3]``, where the query's tokens stand: 0 in ``before`` or 1 in ``after``, the index of the first
        and the index behind the last.
    """

    before: Ragged
    after: Ragged
    query: np.ndarray


def prompt_text(pieces: Pieces, history: str, query: str, titles: str = "") -> str:
    """The text that a template stands for; its spaces and line breaks stay.

    Args:
      pieces: of the template.
      history: tokens of items.
      query: words; spaces at its ends do not count.
      titles: of the history's items.

    Example:
      >>> prompt_text(["search: ", ("query",), " history: ", ("history",), " "], "<item_1> <item_2>", " tea ")
      'search: tea history: <item_1> <item_2> '
    """
    words = {HISTORY: history, TITLES: titles, QUERY: query.strip()}
    return "".join(piece if isinstance(piece, str) else words[piece] for piece in pieces)


def joined_titles(titles: Iterable[str]) -> str:
    """Titles as a prompt lists them.

    Example:
      >>> joined_titles(["Red  lamp ", "Kettle"])
      'Red lamp; Kettle'
    """
    return "; ".join(filter(None, (" ".join(title.split()) for title in titles)))


def words_around(
    pieces: Pieces, texts: Sequence[tuple[bool, str]], tokenizer: Any, item: int, named: Set[int]
) -> Words:
    """The tokens of `prompt_text` but for the history's, which the tokenizer splits off first.

    Where a query spells the name of a token, its letters' tokens stand between those of the words around it.

    Args:
      pieces: of the template, without titles.
      texts: of each of ``K`` texts whether it has a history, and its query.
      tokenizer: a Hugging Face tokenizer.
      item: one of the tokens that histories consist of.
      named: `named_tokens` of the tokenizer.

    Raises:
      ValueError: a query is no Unicode text.
    """
    for _, query in texts:
        check_unicode(query, "the query")
    numbers = {has: [number for number, text in enumerate(texts) if text[0] == has] for has in (True, False)}
    tokens: list[list[list[int]]] = [[[]] * len(texts), [[]] * len(texts)]
    spots = np.zeros((len(texts), 3), np.int64)
    for has_history, chosen in numbers.items():
        if not chosen:
            continue
        index = pieces.index(HISTORY) if has_history else len(pieces)
        token = splitting(item, tokenizer) if has_history else ""
        queries = [texts[number][1] for number in chosen]
        for side, part in enumerate((pieces[:index], pieces[index + 1 :])):
            around = (token, "") if side else ("", token)
            words = [prompt_text(part, "", query) for query in queries]
            if has_history and not token and not side:
                # Tokens that no text names take the spaces before them along all the same.
                words = [text.rstrip() for text in words]
            tokenised = tokenise([(around[0], text, around[1]) for text in words], tokenizer)
            ends = _ends(part, tokenizer, around) if QUERY in part else None
            named_by_template = 0 if ends is None else count_named([*ends[0], *ends[1]], named)
            for number, query, ids in zip(chosen, queries, tokenised, strict=True):
                if ends is not None:
                    if count_named(ids, named) != named_by_template:
                        filled = [piece for piece in part if piece != HISTORY]
                        ids = spelled(filled, {QUERY: query.strip()}, tokenizer, around)
                    start = _common(ids, ends[0])
                    behind = min(_common(ids[::-1], ends[1][::-1]), len(ids) - start)
                    spots[number] = side, start, len(ids) - behind
                tokens[side][number] = ids
    return Words(Ragged.of(tokens[0]), Ragged.of(tokens[1]), spots)


def spelled(pieces: Pieces, words: Mapping[Field, str], tokenizer: Any, around: tuple[str, str]) -> list[int]:
    """The tokens of a text in which people's words are letters, whatever they spell, and the template may name tokens.

    Args:
      pieces: of a template without its history.
      words: what stands for its fields.
      tokenizer: a Hugging Face tokenizer.
      around: the tokens of items before and behind it, or nothing.
    """
    ids: list[int] = []
    space, before = "", around[0]
    for index, piece in enumerate(pieces):
        if isinstance(piece, str):
            is_last = index == len(pieces) - 1
            # A space belongs to the word behind it.
            text = space + piece
            kept = text if is_last else text.rstrip()
            space = text[len(kept) :]
            ids += tokenise([(before, kept, around[1] if is_last else "")], tokenizer)[0]
        else:
            ids += plain_ids([space + words[piece]], tokenizer)[0]
            space, before = "", _WORD
    return ids


def spaces_matter(pieces: Pieces, tokenizer: Any, item: int) -> bool:
    """Whether a prompt has other tokens with the spaces behind items and at its ends than without.

    Args:
      pieces: of the template.
      tokenizer: a Hugging Face tokenizer.
      item: one of the tokens that histories consist of.
    """
    token = splitting(item, tokenizer)
    with_spaces = [prompt_text(pieces, history, _WORD, history and _WORD) for history in (token, "")]
    behind = re.compile(f"(?<={re.escape(token)})\\s+")
    without = [(behind.sub("", text) if token else text).strip() for text in with_spaces]
    first, second = (tokenizer(texts, add_special_tokens=False)["input_ids"] for texts in (with_spaces, without))
    return list(first) != list(second)


def named_tokens(tokenizer: Any) -> set[int]:
    """Tokens that a text can name, but for the one of unknown letters."""
    return set(getattr(tokenizer, "added_tokens_decoder", ())) - {getattr(tokenizer, "unk_token_id", None)}


def splitting(item: int, tokenizer: Any) -> str:
    """An item's token as text, if the tokenizer finds it in one; else nothing."""
    names = getattr(tokenizer, "convert_ids_to_tokens", None)
    token = names(item) if names else None
    is_one_token = token is not None and list(tokenizer(token, add_special_tokens=False)["input_ids"]) == [item]
    return str(token) if is_one_token else ""


def _ends(pieces: Pieces, tokenizer: Any, around: tuple[str, str]) -> tuple[list[int], list[int]]:
    """The tokens before a query and those behind it."""
    index = pieces.index(QUERY)
    first, last = ("".join(x for x in part if isinstance(x, str)) for part in (pieces[:index], pieces[index + 1 :]))
    before, behind_word, word = tokenise(
        [(around[0], first, ""), ("", _WORD + last, around[1]), ("", _WORD, "")], tokenizer
    )
    return before, behind_word[len(word) :]


def count_named(ids: Sequence[int], named: Set[int]) -> int:
    """How many of some tokens are named ones."""
    return sum(map(named.__contains__, ids))


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two lists begin with together."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(first), len(second)))


def tokenise(texts: Sequence[tuple[str, str, str]], tokenizer: Any) -> list[list[int]]:
    """The tokens of each text's middle part, where it stands in the text."""
    if not texts:
        return []
    joined = ["".join(parts) for parts in texts]
    # Each once: behind a history most templates have the same words whatever the query is.
    distinct = list(dict.fromkeys(joined))
    ids = dict(zip(distinct, tokenizer(distinct, add_special_tokens=False)["input_ids"], strict=True))
    pairs = zip(map(ids.__getitem__, joined), texts, strict=True)
    return [list(tokens[bool(ahead) : len(tokens) - bool(behind)]) for tokens, (ahead, _, behind) in pairs]
