"""Ranking items that are one token each: two decoder steps for a whole batch instead of a beam search."""

import functools
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gems_jax.items import ItemIndex

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

    The score of item ``i`` is the mean log-probability of its token and the end token behind it,
    ``(log p(i | x) + log p(end | x, i)) / 2``, for the ``beams`` candidates of the largest ``log p(i | x)``.
    These are the items and scores of a beam search with as many beams that allows nothing but candidates,
    without its loop: the input is encoded once, its keys and values serve all beams.

    Args:
      model: a ``gems_jax.models.T5``.
      inputs: ``"input_ids"`` int32 ``[B, S]`` and ``"attention_mask"`` int32 ``[B, S]`` (all ones if absent).
      items: identifiers of the N items, one token each.
      candidates: item numbers int32 ``[B, C]`` to choose from, -1 pads; None: all items. Of equally probable
        items the earlier candidate is preferred, so let the order not depend on what is right.
      k: number of results a row, at most ``beams``.
      beams: number of items that get the second decoder step.
      vocabulary: what the probabilities are normalised over: ``"full"`` (all tokens) or ``"items"`` (the end
        token and the added item tokens, for models trained with a loss over these).

    Returns:
      Item numbers int32 ``[B, k]``, best first, and their scores float32 ``[B, k]``. Rows with fewer than
      ``k`` candidates end in -1 and ``-inf``.

    Raises:
      ValueError: if a shape, an item number or an option is wrong.

    Example:
      >>> import jax, numpy as np
      >>> from gems_jax.items import ItemIndex
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
    columns = _item_columns(model.config, items, vocabulary)
    _check_counts(k, beams)
    input_ids, attention_mask = _checked_inputs(inputs)
    if candidates is not None:
        candidates = _checked_candidates(candidates, len(input_ids), len(columns))
    width = len(columns) if candidates is None else candidates.shape[1]
    beams = min(beams, max(width, 1))
    graphdef, state = nnx.split(model)
    tokens = jnp.asarray(items.token_ids[:, 0], jnp.int32)
    ids, scores = _rank(
        graphdef, state, input_ids, attention_mask, tokens, jnp.asarray(columns), candidates,
        k=min(k, beams), beams=beams, vocabulary=vocabulary,
    )  # fmt: skip
    missing = k - ids.shape[1]
    if missing:
        ids = jnp.pad(ids, ((0, 0), (0, missing)), constant_values=-1)
        scores = jnp.pad(scores, ((0, 0), (0, missing)), constant_values=-jnp.inf)
    return ids, scores


@functools.partial(jax.jit, static_argnames=("graphdef", "k", "beams", "vocabulary"))
def _rank(
    graphdef: Any,
    state: Any,
    input_ids: jax.Array,
    attention_mask: jax.Array,
    tokens: jax.Array,
    columns: jax.Array,
    candidates: jax.Array | None,
    *,
    k: int,
    beams: int,
    vocabulary: str,
) -> tuple[jax.Array, jax.Array]:
    model = nnx.merge(graphdef, state)
    config = model.config
    encoded = model.encode(input_ids, attention_mask)
    start = jnp.full((len(input_ids), 1), config.decoder_start_token_id, jnp.int32)

    hidden = model.decode(start, encoded, attention_mask)[:, 0]
    log_probs = jax.nn.log_softmax(model.logits(hidden, vocabulary), axis=-1)
    if candidates is None:
        item_scores, best = jax.lax.top_k(log_probs[:, columns], beams)
    else:
        allowed = jnp.take_along_axis(log_probs, columns[jnp.maximum(candidates, 0)], axis=1)
        item_scores, place = jax.lax.top_k(jnp.where(candidates >= 0, allowed, -jnp.inf), beams)
        best = jnp.take_along_axis(candidates, place, axis=1)

    def second_step(token: jax.Array) -> jax.Array:
        prefix = jnp.concatenate([start, token[:, None]], axis=1)
        return model.decode(prefix, encoded, attention_mask)[:, 1]

    # Mapping over the beams alone leaves the keys and values of the encoded input one for all of them.
    beam_tokens = tokens[jnp.maximum(best, 0)].T
    second = jax.vmap(second_step)(beam_tokens)
    end_column = 0 if vocabulary == "items" else config.eos_token_id

    def end_score(beam_hidden: jax.Array) -> jax.Array:
        logits = model.logits(beam_hidden, vocabulary)
        return logits[:, end_column] - jax.nn.logsumexp(logits, axis=-1)

    # Beam after beam, so that no more logits are in memory than in the first step.
    end_scores = jax.lax.map(end_score, second).T
    scores, order = jax.lax.top_k((item_scores + end_scores) / 2, k)
    ids = jnp.take_along_axis(best, order, axis=1)
    return jnp.where(jnp.isneginf(scores), -1, ids).astype(jnp.int32), scores


def _item_columns(config: Any, items: ItemIndex, vocabulary: str) -> np.ndarray:
    """Where each item's token stands among the logits."""
    if vocabulary not in VOCABULARIES:
        raise ValueError(f"vocabulary must be one of {VOCABULARIES}, got {vocabulary!r}")
    token_ids = np.asarray(items.token_ids)
    if token_ids.shape[1] != 1:
        raise ValueError(
            f"items.token_ids has shape {token_ids.shape}: rank_items takes items of one token each, "
            "[N, 1]; give every item a token of its own"
        )
    columns = token_ids[:, 0]
    total = config.vocab_size + config.num_added_tokens
    lowest = config.vocab_size if vocabulary == "items" else 0
    if columns.min() < lowest or columns.max() >= total:
        raise ValueError(
            f"item tokens reach from {columns.min()} to {columns.max()}; with vocabulary={vocabulary!r} this "
            f"model has tokens {lowest} to {total - 1} for them; grow the model to these items first"
        )
    return columns - config.vocab_size + 1 if vocabulary == "items" else columns


def _check_counts(k: int, beams: int) -> None:
    if k < 1 or beams < 1:
        raise ValueError(f"k and beams must be at least 1, got k={k}, beams={beams}")
    if k > beams:
        raise ValueError(f"k={k} results need as many beams, got beams={beams}: raise beams to {k} or lower k")


def _checked_inputs(inputs: Mapping[str, Any]) -> tuple[jax.Array, jax.Array]:
    if "input_ids" not in inputs:
        raise ValueError(f'inputs needs "input_ids" [B, S] (and "attention_mask"); it has {sorted(inputs)}')
    input_ids = jnp.asarray(inputs["input_ids"])
    mask = inputs.get("attention_mask")
    attention_mask = jnp.ones_like(input_ids) if mask is None else jnp.asarray(mask)
    if input_ids.ndim != 2 or input_ids.shape != attention_mask.shape:
        raise ValueError(
            f"input_ids has shape {input_ids.shape} and attention_mask {attention_mask.shape}: both must be [B, S]"
        )
    return input_ids, attention_mask


def _checked_candidates(candidates: Any, rows: int, num_items: int) -> jax.Array:
    numbers = np.asarray(candidates)
    if numbers.ndim != 2 or len(numbers) != rows or not np.issubdtype(numbers.dtype, np.integer):
        raise ValueError(
            f"candidates has shape {numbers.shape} and dtype {numbers.dtype}: expected item numbers "
            f"[{rows}, C], a row for each input, padded with -1"
        )
    if numbers.size and (numbers.min() < -1 or numbers.max() >= num_items):
        raise ValueError(
            f"candidates reach from {numbers.min()} to {numbers.max()}: item numbers are 0 to "
            f"{num_items - 1}, and -1 pads"
        )
    ordered = np.sort(numbers, axis=1)
    twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    if twice.any():
        row = int(np.argwhere(twice)[0][0])
        raise ValueError(f"candidates, row {row}: an item stands there twice; each may be ranked once only")
    return jnp.asarray(numbers, jnp.int32)
