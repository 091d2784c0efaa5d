"""Ranking items by a generative model: beam search over their identifiers, of one token each or several."""

from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from gems_jax.items.tokens import ItemIndex
from gems_jax.ranking.beam_search import beam_search
from gems_jax.ranking.candidate_tries import CandidateTries, build_candidate_tries
from gems_jax.ranking.groups import groups_of
from gems_jax.ranking.trie import Trie, catalogue_of

VOCABULARIES = ("full", "items")


def rank_items(
    model: Any,
    inputs: Mapping[str, Any],
    items: ItemIndex,
    candidates: Any = None,
    k: int = 20,
    beams: int = 20,
    *,
    vocabulary: Literal["full", "items"] = "full",
) -> tuple[jax.Array, jax.Array]:
    """Ranks items by how probable the model finds them as the whole answer to an input.

    The score of item ``i`` with tokens ``i_1 .. i_L`` is the mean log-probability of these and the end token behind
    them, ``(sum_t log p(i_t | x, i_<t) + log p(end | x, i)) / (L + 1)``, over all tokens, allowed or not. A beam
    search that allows nothing but items finds the best (for one token each: the ``beams`` items of the largest
    ``log p(i | x)``, then ordered by their scores). Ids and scores are those of transformers' ``generate`` with
    ``num_beams=beams``, ``length_penalty=1.0``, a ``prefix_allowed_tokens_fn`` and, where identifiers differ in
    length, ``early_stopping="never"``. The input is read once, and its keys and values serve all beams. Where
    candidates are told apart before their last tokens, or nearly, what is left of them is read in one pass.

    On CPUs a model made by `gems_jax.models.unstacked` ranks faster.

    Items that share an identifier (``shared`` of the `ItemIndex`) have its score and stand together, by their numbers;
    the search is one for identifiers.

    Without candidates the identifiers' trie is made at the first call with these items, and kept with them.

    Args:
      model: a `T5` or a `Decoder`.
      inputs: ``"input_ids"`` int ``[B, S]`` and ``"attention_mask"`` int ``[B, S]`` (all ones if absent).
      items: identifiers of the N items.
      candidates: item numbers int ``[B, C]`` to choose from, -1 pads; None: all items. Among equally probable items
        of one token each the earlier candidate is preferred, so let the order not depend on what is right.
      k: number of results a row, at most ``beams``.
      beams: width of the search.
      vocabulary: what the probabilities are normalised over: ``"full"`` (all tokens) or ``"items"`` (the end
        token and the added tokens, for models trained with a loss over these).

    Returns:
      Item numbers int32 ``[B, k]``, best first, and their scores float32 ``[B, k]``. Rows with fewer than
      ``k`` items to choose from end in -1 and ``-inf``.

    Raises:
      ValueError: if a shape, an item number or an option is wrong, an identifier holds the end token or a token
        that the model has not, or the model's config has no end token.

    Example:
      >>> import jax, numpy as np
      >>> from gems_jax.items.tokens import ItemIndex
      >>> from gems_jax.models import T5, T5Config
      >>> config = T5Config(vocab_size=12, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_decoder_layers=1,
      ...                   num_heads=2)
      >>> model = T5.create(config, jax.random.key(0))
      >>> inputs = {"input_ids": np.array([[4, 5, 1]]), "attention_mask": np.ones((1, 3), np.int32)}
      >>> items = ItemIndex(np.array([[8], [9], [10], [11]], np.int32))
      >>> ids, scores = rank_items(model, inputs, items, candidates=np.array([[2, 0, -1]]), k=3)
      >>> sorted(ids[0, :2].tolist()), int(ids[0, 2])
      ([0, 2], -1)
    """
    config = model.config
    check_options(config, k, beams, vocabulary)
    arrays = _checked_inputs(inputs)
    if items.shared:
        return _rank_shared(model, arrays, items, candidates, k, beams, vocabulary)
    if candidates is None:
        catalogue = catalogue_of(items)
        check_tokens(config, catalogue.tokens, vocabulary)
        constraint: Trie | CandidateTries = catalogue.trie
    else:
        numbers = _checked_candidates(candidates, len(arrays["input_ids"]), items)
        check_tokens(config, items.token_ids[numbers[numbers >= 0]], vocabulary)
        constraint = build_candidate_tries(items, numbers, beams)
    return beam_search(model, arrays, constraint, k=k, beams=beams, vocabulary=vocabulary)


def _rank_shared(
    model: Any,
    arrays: Mapping[str, Any],
    items: ItemIndex,
    candidates: Any,
    k: int,
    beams: int,
    vocabulary: Literal["full", "items"],
) -> tuple[jax.Array, jax.Array]:
    """`rank_items` where several items may have one identifier: identifiers are ranked, and their items listed."""
    groups = groups_of(items)
    numbers = None if candidates is None else _checked_candidates(candidates, len(arrays["input_ids"]), items)
    among = None if numbers is None else groups.among(numbers)
    found, scores = rank_items(model, arrays, groups.index, among, k, beams, vocabulary=vocabulary)
    ids, values = groups.listed(np.asarray(found), np.asarray(scores), numbers, k)
    return jnp.asarray(ids), jnp.asarray(values)


def check_tokens(config: Any, tokens: np.ndarray, vocabulary: str) -> None:
    """Checks the tokens of identifiers, -1 padding among them, against what the model has."""
    real = tokens[tokens >= 0]
    if not real.size:
        return
    total = config.vocab_size + config.num_added_tokens
    lowest = config.vocab_size if vocabulary == "items" else 0
    if real.min() < lowest or real.max() >= total:
        raise ValueError(
            f"item tokens reach from {real.min()} to {real.max()}; with vocabulary={vocabulary!r} this "
            f"model has tokens {lowest} to {total - 1} for them; grow the model to these items first"
        )
    if (real == config.eos_token_id).any():
        raise ValueError(f"an item's tokens hold the end token {config.eos_token_id}, which ends an identifier")


def check_options(config: Any, k: int, beams: int, vocabulary: str) -> None:
    if vocabulary not in VOCABULARIES:
        raise ValueError(f"vocabulary must be one of {VOCABULARIES}, got {vocabulary!r}")
    if config.eos_token_id is None:
        raise ValueError("ranking needs an end token, which ends an item: the config's eos_token_id is None, give one")
    if k < 1 or beams < 1:
        raise ValueError(f"k and beams must be at least 1, got k={k}, beams={beams}")
    if k > beams:
        raise ValueError(f"k={k} results need as many beams, got beams={beams}: raise beams to {k} or lower k")


def _checked_inputs(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Both arrays, where they are: those of the host are copied to the device with the call that needs them."""
    if "input_ids" not in inputs:
        raise ValueError(f'inputs needs "input_ids" [B, S] (and "attention_mask"); it has {sorted(inputs)}')
    input_ids, mask = _array(inputs["input_ids"]), inputs.get("attention_mask")
    attention_mask = np.ones(input_ids.shape, np.int32) if mask is None else _array(mask)
    if input_ids.ndim != 2 or input_ids.shape != attention_mask.shape:
        raise ValueError(
            f"input_ids has shape {input_ids.shape} and attention_mask {attention_mask.shape}: both must be [B, S]"
        )
    return {"input_ids": input_ids, "attention_mask": attention_mask}


def _array(values: Any) -> jax.Array | np.ndarray:
    return values if isinstance(values, jax.Array) else np.asarray(values)


def _checked_candidates(candidates: Any, rows: int, items: ItemIndex) -> np.ndarray:
    numbers = np.asarray(candidates)
    if numbers.ndim != 2 or len(numbers) != rows or not np.issubdtype(numbers.dtype, np.integer):
        raise ValueError(
            f"candidates has shape {numbers.shape} and dtype {numbers.dtype}: expected item numbers "
            f"[{rows}, C], a row for each input, padded with -1"
        )
    if numbers.size and (numbers.min() < -1 or numbers.max() >= items.num_items):
        raise ValueError(
            f"candidates reach from {numbers.min()} to {numbers.max()}: item numbers are 0 to "
            f"{items.num_items - 1}, and -1 pads"
        )
    ordered = np.sort(numbers, axis=1)
    twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    if twice.any():
        row = int(np.argwhere(twice)[0][0])
        raise ValueError(f"candidates, row {row}: an item stands there twice; each may be ranked once only")
    return numbers
