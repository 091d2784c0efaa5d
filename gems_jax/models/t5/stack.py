"""T5's encoder and decoder: one block over the stacked parameters of all layers, applied in one scan."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gems_jax.models.attention import dropout
from gems_jax.models.layer_stack import apply_layers
from gems_jax.models.layers import Embedding, RMSNorm, rows
from gems_jax.models.t5.config import T5Config
from gems_jax.models.t5.layers import T5MLP, T5Attention, site_key
from gems_jax.models.t5.relative_positions import position_bias, position_buckets


class EncoderBlock(nnx.Module):
    """Self-attention and feed-forward layer, norm first."""

    def __init__(self, layers: int, config: T5Config, key: jax.Array):
        attention, mlp = jax.random.split(key)
        self.config = config
        self.attention_norm = RMSNorm((layers, config.d_model), config)
        self.attention = T5Attention(layers, config, attention)
        self.mlp_norm = RMSNorm((layers, config.d_model), config)
        self.mlp = T5MLP(layers, config, mlp)

    def __call__(
        self, x: jax.Array, bias: jax.Array, mask: jax.Array | None, dropout_key: jax.Array | None
    ) -> jax.Array:
        rate = self.config.dropout_rate
        normed = rows(self.attention_norm(x))
        memory = self.attention.keys_values(normed, len(x))
        attended = self.attention(normed, memory, bias, mask, site_key(dropout_key, 0))
        x = x + dropout(attended, rate, site_key(dropout_key, 1)).reshape(x.shape)
        hidden = self.mlp(rows(self.mlp_norm(x)), site_key(dropout_key, 2))
        return x + dropout(hidden, rate, site_key(dropout_key, 3)).reshape(x.shape)


class DecoderBlock(nnx.Module):
    """Self-attention, attention to the encoded input and feed-forward layer, norm first."""

    def __init__(self, layers: int, config: T5Config, key: jax.Array):
        self_attention, cross_attention, mlp = jax.random.split(key, 3)
        self.config = config
        self.self_attention_norm = RMSNorm((layers, config.d_model), config)
        self.self_attention = T5Attention(layers, config, self_attention)
        self.cross_attention_norm = RMSNorm((layers, config.d_model), config)
        self.cross_attention = T5Attention(layers, config, cross_attention)
        self.mlp_norm = RMSNorm((layers, config.d_model), config)
        self.mlp = T5MLP(layers, config, mlp)

    def __call__(
        self,
        x: jax.Array,
        encoded: jax.Array,
        bias: jax.Array,
        mask: jax.Array,
        cross_mask: jax.Array | None,
        dropout_key: jax.Array | None,
    ) -> jax.Array:
        normed = rows(self.self_attention_norm(x))
        memory = self.self_attention.keys_values(normed, len(x))
        cross_memory = self.cross_attention.keys_values(encoded, len(x))
        return self._apply(x, normed, memory, cross_memory, bias, mask, cross_mask, dropout_key)

    def step(
        self,
        x: jax.Array,
        memory: tuple[jax.Array, jax.Array],
        cross_memory: tuple[jax.Array, jax.Array],
        position: jax.Array | int,
        bias: jax.Array,
        mask: jax.Array,
        cross_mask: jax.Array,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Positions ``[B, T, width]`` from ``position`` on, and ``memory`` with their keys and values written there."""
        normed = rows(self.self_attention_norm(x))
        new = self.self_attention.keys_values(normed, len(x))
        keys, values = (jax.lax.dynamic_update_slice_in_dim(memory[i], new[i], position, 1) for i in range(2))
        memory = keys, values
        return self._apply(x, normed, memory, cross_memory, bias, mask, cross_mask, None), memory

    def _apply(
        self,
        x: jax.Array,
        normed: jax.Array,
        memory: tuple[jax.Array, jax.Array],
        cross_memory: tuple[jax.Array, jax.Array],
        bias: jax.Array,
        mask: jax.Array,
        cross_mask: jax.Array | None,
        dropout_key: jax.Array | None,
    ) -> jax.Array:
        rate = self.config.dropout_rate
        attended = self.self_attention(normed, memory, bias, mask, site_key(dropout_key, 0))
        x = x + dropout(attended, rate, site_key(dropout_key, 1)).reshape(x.shape)
        normed = rows(self.cross_attention_norm(x))
        attended = self.cross_attention(normed, cross_memory, None, cross_mask, site_key(dropout_key, 2))
        x = x + dropout(attended, rate, site_key(dropout_key, 3)).reshape(x.shape)
        hidden = self.mlp(rows(self.mlp_norm(x)), site_key(dropout_key, 4))
        return x + dropout(hidden, rate, site_key(dropout_key, 5)).reshape(x.shape)


class Stack(nnx.Module):
    """All layers of the encoder or the decoder, their parameters stacked along the first axis."""

    def __init__(self, block: type[EncoderBlock] | type[DecoderBlock], layers: int, config: T5Config, key: jax.Array):
        block_key, bias_key = jax.random.split(key)
        self.config = config
        self.layers = layers
        self.bidirectional = block is EncoderBlock
        self.block = block(layers, config, block_key)
        shape: tuple[int, ...] = (config.relative_buckets, config.num_heads)
        shape = (layers, *shape) if config.positions_per_layer else shape
        self.relative_bias = Embedding(shape, config.d_model**-0.5, config, bias_key)
        self.final_norm = RMSNorm((config.d_model,), config)

    def buckets(self, length: int) -> np.ndarray:
        """Position buckets int32 ``[length, length]`` of queries and keys."""
        config = self.config
        return position_buckets(
            length, length, self.bidirectional, config.relative_buckets, config.relative_max_distance
        )

    def scan(
        self,
        x: Any,
        apply: Callable[[Any, Any, Any, Any], tuple[Any, Any]],
        bias: Callable[[Any], jax.Array],
        others: Any,
    ) -> tuple[Any, Any]:
        """Applies the layers one after the other.

        Args:
          x: what the first layer gets.
          apply: ``apply(layer, x, position_bias, other) -> (x, output)``.
          bias: makes a position bias of a table ``[buckets, heads]``.
          others: tree of what differs from layer to layer, with them as the leading axis.

        Returns:
          The result of the last layer, and the outputs of all.
        """
        table = self.relative_bias.embedding[...]
        own_tables = self.config.positions_per_layer
        shared = None if own_tables else bias(table)

        def with_bias(layer: Any, x: Any, other: tuple[jax.Array | None, Any]) -> tuple[Any, Any]:
            own_table, own = other
            return apply(layer, x, bias(own_table) if own_tables else shared, own)

        return apply_layers(self.block, with_bias, x, (table if own_tables else None, others), self.config.remat)

    def __call__(
        self,
        x: jax.Array,
        apply: Callable[[Any, jax.Array, jax.Array, jax.Array | None], jax.Array],
        key: jax.Array | None,
    ) -> jax.Array:
        """All positions: ``apply(layer, x, position_bias, dropout_key)`` layer after layer, and the final norm."""
        rate = self.config.dropout_rate
        keys = None if key is None or rate == 0 else jax.random.split(jax.random.fold_in(key, 0), self.layers)
        buckets = self.buckets(x.shape[1])
        x, _ = self.scan(
            dropout(x.astype(self.config.dtype), rate, site_key(key, 1)),
            lambda block, x, bias, layer_key: (apply(block, x, bias, layer_key), None),
            lambda table: position_bias(table, buckets),
            keys,
        )
        return dropout(self.final_norm(x), rate, site_key(key, 2))


class T5Cache(NamedTuple):
    """Keys and values of the tokens so far and of the encoded input.

    Args:
      keys, values: ``[layers, B, max_length, heads, d_kv]``, filled up to ``length``.
      cross_keys, cross_values: ``[layers, B, S, heads, d_kv]`` of the encoded input.
      cross_mask: bool ``[B, S]``, False for padding of the input.
      length: int32 scalar, number of tokens so far.
    """

    keys: jax.Array
    values: jax.Array
    cross_keys: jax.Array
    cross_values: jax.Array
    cross_mask: jax.Array
    length: jax.Array

    def take(self, rows: jax.Array) -> "T5Cache":
        """The cache of the given rows of the batch, int ``[B']``; a row may stand there several times."""
        return self._replace(
            keys=jnp.take(self.keys, rows, axis=1),
            values=jnp.take(self.values, rows, axis=1),
            cross_keys=jnp.take(self.cross_keys, rows, axis=1),
            cross_values=jnp.take(self.cross_values, rows, axis=1),
            cross_mask=jnp.take(self.cross_mask, rows, axis=0),
        )


def key_mask(mask: jax.Array | None) -> jax.Array | None:
    """Bool ``[B, 1, 1, S]`` of the keys ``[B, S]`` that may be attended to; ``None``: all."""
    return None if mask is None else jnp.asarray(mask)[:, None, None, :] > 0
