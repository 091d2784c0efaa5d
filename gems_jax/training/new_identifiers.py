"""Identifiers of items that a run was not tuned with, of the tokens that it was tuned with."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from gems_jax.config.items import QUANTISERS
from gems_jax.config.run import Config
from gems_jax.data.dataset.tables import Item
from gems_jax.identifiers.code_files import load
from gems_jax.identifiers.codes import Identifiers
from gems_jax.identifiers.placement import place
from gems_jax.identifiers.text_embeddings import text_embeddings
from gems_jax.items.tokens import read_identifiers
from gems_jax.training.identify import is_made
from gems_jax.training.stages import Assets


def identifiers_of(
    config: Config, assets: Assets, base: Any, new: Sequence[Item], brought: str | None
) -> tuple[list[tuple[str, ...]], int]:
    """The tokens of new items, and how many items have other codes than those nearest to them, or brought.

    Where the run's identifiers are made of texts, so are these, by the same model and codebooks.

    Args:
      config: of the run.
      assets: of the run, with the catalogue as it is.
      base: the base model, before items were added.
      new: items that the catalogue has not.
      brought: JSON file of their identifiers.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file lacks an item, has a token that no item of the run has in this place, an identifier of a
        length that none has or that of another item; there are more items than identifiers.
    """
    if not is_made(config):
        assert brought is not None
        return _brought(assets, new, brought, alone=not assets.items.shared), 0
    ids = load(config.items.path)
    taken = _codes([_tokens(row, assets.tokenizer) for row in assets.items.token_ids], ids)
    wanted = None
    if config.items.identifiers not in QUANTISERS:
        assert brought is not None
        wanted = _codes(_brought(assets, new, brought, alone=False), ids)
    embeddings = text_embeddings(base, assets.tokenizer, [item.search_text for item in new], progress=True)
    assert ids.codebooks is not None
    placed = place(ids.vectors(embeddings), ids.codebooks, taken, wanted)
    return Identifiers(placed.codes, level_names=ids.level_names).tokens(), placed.moved


def _brought(assets: Assets, new: Sequence[Item], path: str, alone: bool = True) -> list[tuple[str, ...]]:
    """Identifiers that a file brings; ``alone``: none may be another item's."""
    tokens_of, vocabulary = read_identifiers(path), assets.tokenizer.get_vocab()
    missing = [item.item_id for item in new if item.item_id not in tokens_of]
    if missing:
        raise ValueError(f"{path}: no identifier for {len(missing):,} of the new items, such as {missing[0]!r}")
    rows = assets.items.token_ids
    # What the model has seen is a token in its place, and an end behind so many tokens.
    known = [set(column[column >= 0].tolist()) for column in rows.T]
    lengths = sorted(set((rows >= 0).sum(axis=1).tolist()))
    owners = {
        _tokens(row, assets.tokenizer): item.item_id for row, item in zip(rows, assets.dataset.items, strict=True)
    }
    for item in new:
        tokens = tokens_of[item.item_id]
        if len(tokens) not in lengths:
            raise ValueError(
                f"{path}: item {item.item_id!r} has the identifier {''.join(tokens)} of {len(tokens)} tokens, and "
                f"items of the run have {' or '.join(map(str, lengths))}: use the same form"
            )
        for level, (token, there) in enumerate(zip(tokens, known, strict=False), 1):
            if vocabulary.get(token) not in there:
                raise ValueError(
                    f"{path}: item {item.item_id!r} has token {token} in place {level}, where no item of the run had it"
                    " and the model knows nothing of it: use the run's own tokens in their places"
                )
        if alone and tokens in owners:
            raise ValueError(
                f"{path}: item {item.item_id!r} has the identifier {''.join(tokens)} of item {owners[tokens]!r}: no "
                "two items may share one, removed items keep theirs"
            )
        owners[tokens] = item.item_id
    return [tokens_of[item.item_id] for item in new]


def _tokens(row: np.ndarray, tokenizer: Any) -> tuple[str, ...]:
    return tuple(tokenizer.convert_ids_to_tokens(row[row >= 0].tolist()))


def _codes(identifiers: Sequence[Sequence[str]], ids: Identifiers) -> np.ndarray:
    """Codes of identifiers, int32 ``[N, L]``."""
    assert ids.codebooks is not None
    assert ids.level_names is not None
    levels = [{f"<{name}{code}>": code for code in range(ids.codebooks.shape[1])} for name in ids.level_names]
    for tokens in identifiers:
        if len(tokens) != len(levels) or any(token not in codes for token, codes in zip(tokens, levels, strict=True)):
            raise ValueError(f"identifier {''.join(tokens)} is none of the run's: expected a token of each level")
    return np.array(
        [[codes[token] for token, codes in zip(tokens, levels, strict=True)] for tokens in identifiers], np.int32
    )
