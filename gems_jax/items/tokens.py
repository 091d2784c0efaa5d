"""Items as tokens: one new token an item, or several that items share."""

import copy
import dataclasses
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gems_jax.models.hf.tokenizer import max_unused_rows

__all__ = [
    "ItemIndex",
    "add_identifier_tokens",
    "add_item_tokens",
    "index_identifiers",
    "item_token",
    "load_item_identifiers",
    "read_identifiers",
]

# Millions of items, with room: a larger file is another.
_MOST_BYTES = 4 << 30


@dataclasses.dataclass(frozen=True, eq=False)
class ItemIndex:
    """The tokens that stand for each item.

    Args:
      token_ids: int ``[N, L]``, row ``i`` the tokens of item ``i``, shorter ones padded with -1 at the end. Columns at
        the end that no item uses are dropped.
      removed: items that are known, so that they may stand in histories, and are ranked no more unless they are named
        as candidates.
      shared: whether several items may have the same tokens, and then the same score.

    Raises:
      ValueError: if the shape or type is wrong, a token id is negative, an item is empty, two items have the same
        tokens and may not, or no item is left to be ranked.

    Example:
      >>> import numpy as np
      >>> ItemIndex(np.array([[100], [101]])).num_items
      2
    """

    token_ids: np.ndarray
    removed: frozenset[int] = frozenset()
    shared: bool = False

    def __post_init__(self) -> None:
        ids = np.asarray(self.token_ids)
        if ids.ndim != 2 or 0 in ids.shape or not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(
                f"token_ids has shape {ids.shape} and dtype {ids.dtype}: expected integers [N, L], a row for each item"
            )
        if ids.max() > np.iinfo(np.int32).max:
            raise ValueError(f"token_ids has a token id {ids.max()}, above what int32 holds")
        ids = ids.astype(np.int32)
        wrong = (ids < -1).any(1) | (ids[:, 0] < 0) | ((ids[:, :-1] < 0) & (ids[:, 1:] >= 0)).any(1)
        if wrong.any():
            item = int(np.argmax(wrong))
            raise ValueError(f"token_ids, item {item}: {ids[item].tolist()} must be token ids, then only -1 as padding")
        ids = np.ascontiguousarray(ids[:, (ids >= 0).any(0)])
        order = np.lexsort(ids.T[::-1])
        twice = (ids[order][1:] == ids[order][:-1]).all(1)
        if twice.any() and not self.shared:
            index = int(np.argmax(twice))
            first, second = sorted(order[index : index + 2].tolist())
            raise ValueError(
                f"token_ids: items {first} and {second} have the same tokens {ids[first].tolist()}: give them others, "
                "or shared=True to rank them alike"
            )
        if not all(0 <= item < len(ids) for item in self.removed) or len(self.removed) == len(ids):
            raise ValueError(f"removed has {len(self.removed)} items: they must be some of the {len(ids)}, and not all")
        ids.flags.writeable = False
        object.__setattr__(self, "token_ids", ids)

    @property
    def num_items(self) -> int:
        """Number of items, N."""
        return len(self.token_ids)


def item_token(item_id: str) -> str:
    """The token that stands for an item.

    Example:
      >>> item_token("B00004")
      '<item_B00004>'
    """
    return f"<item_{item_id}>"


def add_item_tokens(tokenizer: Any, item_ids: Sequence[str], vocab_size: int | None = None) -> list[int]:
    """Adds one token for each item to a tokenizer, in place.

    A token takes the spaces before it along, so that between the tokens of a history of items no other token stands.
    A word behind it is spelled as behind any other word: it keeps its space, with which byte-level tokenizers spell it
    so, unless the tokenizer puts one there by itself (Llama 2's, from transformers 5.24 on).

    Args:
      tokenizer: a Hugging Face tokenizer.
      item_ids: the N items' identifiers.
      vocab_size: rows of the model's embedding, where the items' ids shall begin; ``None``: the tokenizer's size.
        Rows that the model has beyond the tokenizer (tables are padded to round sizes) get tokens
        ``<unused_...>``, as many as `max_unused_rows` allows.

    Returns:
      The N token ids, one after the other from ``vocab_size`` on.

    Raises:
      ValueError: if there are no items, one occurs twice or is in the tokenizer already, or the tokenizer does not
        belong to a model of ``vocab_size``.
    """
    tokens = [item_token(item_id) for item_id in item_ids]
    if not tokens:
        raise ValueError("item_ids is empty: give the identifiers of the items to add")
    seen: set[str] = set()
    for token in tokens:
        if token in seen:
            raise ValueError(f"item_ids holds the item of {token} twice; each may be added once")
        seen.add(token)
    return _add_tokens(tokenizer, tokens, vocab_size)


def _add_tokens(tokenizer: Any, tokens: Sequence[str], vocab_size: int | None) -> list[int]:
    """Adds distinct tokens, their ids one after the other from ``vocab_size`` on."""
    from transformers import AddedToken

    vocabulary = tokenizer.get_vocab()
    for token in tokens:
        if token in vocabulary:
            raise ValueError(
                f"the tokenizer already has {token} (id {vocabulary[token]}): start from the tokenizer without items"
            )
    size = len(tokenizer)
    start = size if vocab_size is None else vocab_size
    if not 0 <= start - size <= max_unused_rows(start):
        raise ValueError(
            f"the tokenizer has {size} tokens, the model's vocabulary {start}: they do not belong together; load both "
            "from one folder"
        )
    unused = [f"<unused_{number}>" for number in range(size, start)]
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in unused])
    rstrip = _has_own_space_behind(tokenizer, tokens[0])
    tokenizer.add_tokens([AddedToken(token, lstrip=True, rstrip=rstrip, normalized=False) for token in tokens])
    ids = tokenizer.convert_tokens_to_ids(list(tokens))
    if list(ids) != list(range(start, start + len(tokens))):
        raise ValueError(
            f"the tokenizer gave the items ids from {min(ids)} to {max(ids)}, expected {start} to "
            f"{start + len(tokens) - 1}: its ids have gaps; renumber its added tokens"
        )
    return list(ids)


def _has_own_space_behind(tokenizer: Any, token: str) -> bool:
    """Whether a word behind an added token is spelled as behind any other word without the space, and not with it."""
    from transformers import AddedToken

    tried = copy.deepcopy(tokenizer)  # a token that was added cannot be taken out
    tried.add_tokens([AddedToken(token, lstrip=True, normalized=False)])

    def ids(text: str) -> list[int]:
        return list(tried(text, add_special_tokens=False)["input_ids"])

    word = ids("a a")[len(ids("a")) :]
    return ids(f"{token} a")[1:] != word and ids(f"{token}a")[1:] == word


def load_item_identifiers(
    path: str | os.PathLike[str], item_ids: Sequence[str], shared: bool = False
) -> list[tuple[str, ...]]:
    """Reads identifiers of several tokens an item, such as the four levels of a semantic id (arXiv 2305.05065).

    Args:
      path: JSON file, an object of item id to its tokens: ``["<a_12>", "<b_7>"]`` or in one string
        ``"<a_12><b_7>"``. An identifier may be the beginning of another's: the end token tells them apart.
      item_ids: the N items, in the order of their numbers.
      shared: whether several items may have one identifier.

    Returns:
      The tokens of each item.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is no such object, an item is missing, unknown or stands there twice, or an identifier is
        empty, wrong or another item's, too.

    Example:
      >>> import pathlib, tempfile
      >>> path = pathlib.Path(tempfile.mkdtemp()) / "identifiers.json"
      >>> _ = path.write_text('{"B01": ["<a_1>", "<b_2>"], "B02": "<a_1><b_3>"}')
      >>> load_item_identifiers(path, ["B02", "B01"])
      [('<a_1>', '<b_3>'), ('<a_1>', '<b_2>')]
    """
    tokens_of, known = read_identifiers(path), set(item_ids)
    owners: dict[tuple[str, ...], list[str]] = {}
    for item_id, tokens in tokens_of.items():
        if item_id not in known:
            raise ValueError(f"{path}: item {item_id!r} is not one of the {len(known)} items of the catalogue")
        owners.setdefault(tokens, []).append(item_id)
    together = [items for items in owners.values() if len(items) > 1]
    if together and not shared:
        first, second = together[0][:2]
        raise ValueError(
            f"{path}: {sum(map(len, together)):,} items share their identifier with another: items {first!r} and "
            f"{second!r} have the same identifier {tokens_of[first]}; set items.collisions to reassign to give them "
            "others, or to group to rank them alike, or take a file without collisions"
        )
    missing = [item_id for item_id in item_ids if item_id not in tokens_of]
    if missing:
        raise ValueError(f"{path}: no identifier for {len(missing)} items, such as {missing[0]!r}")
    return [tokens_of[item_id] for item_id in item_ids]


def read_identifiers(path: str | os.PathLike[str]) -> dict[str, tuple[str, ...]]:
    """The tokens of each item in a file of `load_item_identifiers`, of whatever catalogue; items may share them all.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is no such object, too large, an item stands there twice, or an identifier is empty or wrong.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: give the JSON file of the items' identifiers")
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(f"{path} is larger than {_MOST_BYTES >> 30} GiB: that is no file of identifiers")
    try:
        pairs = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=list)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no valid JSON: {error}") from error
    if not isinstance(pairs, list) or not pairs or not all(isinstance(pair, tuple) for pair in pairs):
        raise ValueError(f"{path} must hold one JSON object, item id to tokens")
    tokens_of: dict[str, tuple[str, ...]] = {}
    for item_id, written in pairs:
        if item_id in tokens_of:
            raise ValueError(f"{path}: item {item_id!r} stands there twice")
        tokens_of[item_id] = _identifier(written, f"{path}: item {item_id!r}")
    return tokens_of


def _identifier(written: Any, where: str) -> tuple[str, ...]:
    tokens = re.findall(r"<[^<>]*>", written) if isinstance(written, str) else written
    if isinstance(written, str) and "".join(tokens) != written:
        raise ValueError(f"{where}: {written!r} is no row of tokens like '<a_12><b_7>'; give a list of tokens")
    if not isinstance(tokens, list) or not all(isinstance(token, str) and token.strip() == token for token in tokens):
        raise ValueError(f"{where}: {written!r} must be a list of tokens or a string like '<a_12><b_7>'")
    if not tokens or not all(tokens):
        raise ValueError(f"{where}: the identifier or one of its tokens is empty: {written!r}")
    return tuple(tokens)


def add_identifier_tokens(
    tokenizer: Any, identifiers: Sequence[Sequence[str]], vocab_size: int | None = None, shared: bool = False
) -> ItemIndex:
    """Adds the tokens that identifiers consist of to a tokenizer, in place, each once, in the order of their text.

    Like those of `add_item_tokens` they take the spaces before them along.

    Args:
      tokenizer: a Hugging Face tokenizer.
      identifiers: the tokens of each of the N items, from `load_item_identifiers`.
      vocab_size: rows of the model's embedding, see `add_item_tokens`.
      shared: whether several items may have one identifier.

    Returns:
      The items' token ids.

    Raises:
      ValueError: if there are no items, two have the same tokens, a token is in the tokenizer already, or the
        tokenizer does not belong to a model of ``vocab_size``.
    """
    tokens = sorted({token for identifier in identifiers for token in identifier})
    if not tokens:
        raise ValueError("identifiers is empty: give the tokens of each item")
    _add_tokens(tokenizer, tokens, vocab_size)
    return index_identifiers(tokenizer, identifiers, shared)


def index_identifiers(tokenizer: Any, identifiers: Sequence[Sequence[str]], shared: bool = False) -> ItemIndex:
    """The items' token ids for a tokenizer that has their tokens, such as one that was loaded with its model.

    Args:
      tokenizer: a Hugging Face tokenizer.
      identifiers: the tokens of each of the N items.
      shared: whether several items may have one identifier.

    Raises:
      ValueError: if the tokenizer lacks one of the tokens, or an item's identifier is empty or another's, too.
    """
    vocabulary = tokenizer.get_vocab()
    ids = np.full((len(identifiers), max((len(tokens) for tokens in identifiers), default=0)), -1, np.int32)
    for item, tokens in enumerate(identifiers):
        for column, token in enumerate(tokens):
            if token not in vocabulary:
                raise ValueError(f"the tokenizer lacks {token}, a token of item {item}: add_identifier_tokens adds it")
            ids[item, column] = vocabulary[token]
    return ItemIndex(ids, shared=shared)
