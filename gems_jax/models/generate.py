"""Text from a model, token by token."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx


def greedy(
    model: Any, inputs: Mapping[str, jax.Array], max_new_tokens: int, stop_ids: tuple[int, ...] | None = None
) -> jax.Array:
    """The likeliest token, again and again, for all rows at once and in one compiled program.

    Args:
      model: a `Decoder`, a `T5`, or any NNX model with a ``config``, ``start(inputs, max_new_tokens)`` and
        ``step(ids, cache)``, each of which returns the logits of the next token and a cache.
      inputs: ``"input_ids"`` int ``[B, S]`` and, if there is padding, ``"attention_mask"`` ``[B, S]``, padded on
        either side.
      max_new_tokens: how many tokens at most.
      stop_ids: tokens that end a text; ``None``: those of the model's config.

    Returns:
      int32 ``[B, max_new_tokens]``, the new tokens, the one that ends a text among them; behind it padding.

    Raises:
      ValueError: if ``max_new_tokens`` is below 1.

    Example:
      >>> from gems_jax.models.decoder.model import Decoder, DecoderConfig
      >>> config = DecoderConfig(vocab_size=20, d_model=8, d_ff=16, num_layers=1, num_heads=2, num_kv_heads=1,
      ...                        head_dim=4)
      >>> model = Decoder.create(config, jax.random.key(0))
      >>> greedy(model, {"input_ids": jnp.array([[5, 6, 1]])}, max_new_tokens=4).shape
      (1, 4)
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    stops = _stop_ids(model.config) if stop_ids is None else tuple(stop_ids)
    graph, state = nnx.split(model)
    arrays = {name: jnp.asarray(inputs[name]) for name in ("input_ids", "attention_mask") if name in inputs}
    return _greedy(graph, state, arrays, max_new_tokens, stops, model.config.pad_token_id)


def _stop_ids(config: Any) -> tuple[int, ...]:
    stops = getattr(config, "stop_ids", None)
    return (config.eos_token_id,) if stops is None else stops


@functools.partial(jax.jit, static_argnums=(0, 3, 4, 5))
def _greedy(
    graph: Any, state: Any, inputs: dict[str, jax.Array], max_new_tokens: int, stops: tuple[int, ...], pad: int
) -> jax.Array:
    model = nnx.merge(graph, state)
    logits, cache = model.start(inputs, max_new_tokens)
    chosen = jnp.full((logits.shape[0], max_new_tokens), pad, jnp.int32)

    def choose(logits: jax.Array, ended: jax.Array) -> tuple[jax.Array, jax.Array]:
        ids = jnp.where(ended, pad, jnp.argmax(logits, axis=-1)).astype(jnp.int32)
        return ids, ended | jnp.isin(ids, jnp.array(stops, jnp.int32))

    def goes_on(carry: tuple[Any, ...]) -> jax.Array:
        count, _, ended, _, _ = carry
        return (count < max_new_tokens) & ~ended.all()

    def one_more(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        count, ids, ended, chosen, cache = carry
        logits, cache = model.step(ids, cache)
        ids, ended = choose(logits, ended)
        return count + 1, ids, ended, chosen.at[:, count].set(ids), cache

    ids, ended = choose(logits, jnp.zeros(len(logits), bool))
    first = (jnp.int32(1), ids, ended, chosen.at[:, 0].set(ids), cache)
    return jax.lax.while_loop(goes_on, one_more, first)[3]
