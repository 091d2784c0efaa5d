"""One layer of a decoder, its parameters stacked for all layers."""

from collections.abc import Callable

import jax
from flax import nnx

from gems_jax.models.decoder.config import DecoderConfig
from gems_jax.models.decoder.rope import rotate
from gems_jax.models.layers import Linear, RMSNorm, rows

# Mixes values [B, S, kv_heads, head_dim] by queries [B, S, heads, head_dim] and keys.
Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
Rotation = tuple[jax.Array, jax.Array]


class DecoderAttention(nnx.Module):
    """Attention with rotary positions, its keys and values shared by groups of heads (arXiv 2305.13245)."""

    def __init__(self, config: DecoderConfig, key: jax.Array):
        q, k, v, o = jax.random.split(key, 4)
        inner, shared = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        bias = config.attention_bias or config.model_type == "qwen2"
        self.config = config
        layers, width, std = config.num_layers, config.d_model, config.initializer_range
        self.q = Linear((layers, width, inner), std, config, q, bias)
        self.k = Linear((layers, width, shared), std, config, k, bias)
        self.v = Linear((layers, width, shared), std, config, v, bias)
        self.o = Linear((layers, inner, width), std, config, o, config.attention_bias)
        if config.model_type == "qwen3":
            self.q_norm = RMSNorm((config.num_layers, config.head_dim), config)
            self.k_norm = RMSNorm((config.num_layers, config.head_dim), config)

    def __call__(
        self, x: jax.Array, batch: int, rotation: Rotation, attend: Attend
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Attends among tokens of ``batch`` rows one after the other ``[B * S, width]``.

        Returns:
          The result ``[B * S, width]``, and the rotated keys and the values ``[B, S, kv_heads, head_dim]``.
        """
        q, k, v = (y.reshape(batch, -1, y.shape[-1] // self.config.head_dim, self.config.head_dim)
                   for y in (self.q(x), self.k(x), self.v(x)))  # fmt: skip
        if self.config.model_type == "qwen3":
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q, *rotation), rotate(k, *rotation)
        return self.o(attend(q, k, v).reshape(len(x), -1)), (k, v)


class DecoderMLP(nnx.Module):
    """``(silu(x W_gate) * x W_up) W_down`` (arXiv 2002.05202)."""

    def __init__(self, config: DecoderConfig, key: jax.Array):
        gate, up, down = jax.random.split(key, 3)
        layers, width, hidden, std = config.num_layers, config.d_model, config.d_ff, config.initializer_range
        self.gate = Linear((layers, width, hidden), std, config, gate, config.mlp_bias)
        self.up = Linear((layers, width, hidden), std, config, up, config.mlp_bias)
        self.down = Linear((layers, hidden, width), std, config, down, config.mlp_bias)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


class Block(nnx.Module):
    """Attention and feed-forward layer, norm first."""

    def __init__(self, config: DecoderConfig, key: jax.Array):
        attention, mlp = jax.random.split(key)
        self.attention_norm = RMSNorm((config.num_layers, config.d_model), config)
        self.attention = DecoderAttention(config, attention)
        self.mlp_norm = RMSNorm((config.num_layers, config.d_model), config)
        self.mlp = DecoderMLP(config, mlp)

    def __call__(
        self, x: jax.Array, rotation: Rotation, attend: Attend
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """One layer of ``x [B, S, width]``, and its keys and values."""
        attended, keys_values = self.attention(rows(self.attention_norm(x)), len(x), rotation, attend)
        x = x + attended.reshape(x.shape)
        return x + self.mlp(rows(self.mlp_norm(x))).reshape(x.shape), keys_values
