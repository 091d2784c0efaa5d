"""T5 and T5 1.1 in Flax NNX, layers stacked so that a whole stack is one scan."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gems_jax.leaf_path import leaf_path

# Added to the scores of keys that may not be attended to; finite, so that a row without any key gives no NaN.
_MASKED = -1e9

Vocabulary = Literal["full", "base", "items"]


@dataclasses.dataclass(frozen=True)
class T5Config:
    """The shape of a T5 model and how it computes; the defaults are those of T5 1.1.

    Args:
      vocab_size: V, rows of the pretrained embedding.
      d_model, d_kv, d_ff: widths of the residual stream, of one attention head and of the feed-forward layer.
      num_layers, num_decoder_layers: layers of the encoder and of the decoder.
      num_heads: attention heads.
      num_added_tokens: N, rows added for items behind the pretrained ones (see `gems_jax.items.grow`).
      feed_forward: ``"gated-gelu"`` (T5 1.1) or ``"relu"`` (T5).
      relative_buckets, relative_max_distance: relative positions are learned per bucket, see `position_buckets`.
      dropout_rate: applied only in calls that are given a ``dropout_key``.
      tie_word_embeddings: whether the embedding is also the output layer (T5).
      scale_decoder_outputs: whether the output layer's input is scaled by ``d_model ** -0.5``; ``None``: if tied.
      norm_epsilon: of the RMS norms.
      dtype: of the matrix products, ``"float32"`` or ``"bfloat16"``; norms, softmax and logits are float32.
      param_dtype: of the parameters.
      pad_token_id, eos_token_id, decoder_start_token_id: token ids with a role.
      remat: whether a layer's inner values are computed again in the backward pass instead of being kept. Needs
        far less memory; on CPU, where writing them costs more than computing them, it is also 1.2 times as fast.
    """

    vocab_size: int
    d_model: int
    d_kv: int
    d_ff: int
    num_layers: int
    num_decoder_layers: int
    num_heads: int
    num_added_tokens: int = 0
    feed_forward: str = "gated-gelu"
    relative_buckets: int = 32
    relative_max_distance: int = 128
    dropout_rate: float = 0.0
    tie_word_embeddings: bool = False
    norm_epsilon: float = 1e-6
    dtype: str = "float32"
    param_dtype: str = "float32"
    pad_token_id: int = 0
    eos_token_id: int = 1
    decoder_start_token_id: int = 0
    scale_decoder_outputs: bool | None = None
    remat: bool = True

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_decoder_layers", "num_heads")
        for name in sizes:
            if getattr(self, name) < 1:
                raise ValueError(f"T5Config.{name} must be at least 1, got {getattr(self, name)}")
        if self.num_added_tokens < 0:
            raise ValueError(f"T5Config.num_added_tokens must not be negative, got {self.num_added_tokens}")
        if self.feed_forward not in ("gated-gelu", "relu"):
            raise ValueError(f"T5Config.feed_forward must be 'gated-gelu' or 'relu', got {self.feed_forward!r}")
        for name in ("dtype", "param_dtype"):
            if getattr(self, name) not in ("float32", "bfloat16"):
                raise ValueError(f"T5Config.{name} must be 'float32' or 'bfloat16', got {getattr(self, name)!r}")
        if not 0 <= self.dropout_rate < 1:
            raise ValueError(f"T5Config.dropout_rate must be in [0, 1), got {self.dropout_rate}")
        if self.relative_buckets < 4 or self.relative_buckets % 2:
            raise ValueError(f"T5Config.relative_buckets must be even and at least 4, got {self.relative_buckets}")
        if self.relative_max_distance <= self.relative_buckets // 2:
            raise ValueError(
                f"T5Config.relative_max_distance must exceed half of relative_buckets={self.relative_buckets}, "
                f"got {self.relative_max_distance}"
            )
        for name in ("pad_token_id", "eos_token_id", "decoder_start_token_id"):
            if not 0 <= getattr(self, name) < self.vocab_size:
                raise ValueError(
                    f"T5Config.{name}={getattr(self, name)} is outside of the vocabulary of {self.vocab_size}"
                )


def position_buckets(queries: int, keys: int, bidirectional: bool, buckets: int, max_distance: int) -> np.ndarray:
    """Bucket of the distance between each query and key: exact when near, logarithmic when far.

    Half of the buckets hold one distance each, the other half grow geometrically up to ``max_distance``, beyond
    which all distances share the last one; with ``bidirectional`` each sign has half of all (arXiv 1910.10683,
    section 2.1).

    Returns:
      int32 ``[queries, keys]``, fixed while tracing.

    Example:
      >>> position_buckets(1, 5, bidirectional=True, buckets=8, max_distance=16).tolist()
      [[0, 5, 6, 6, 6]]
    """
    distance = np.arange(keys)[None, :] - np.arange(queries)[:, None]
    sign_offset = np.zeros_like(distance)
    if bidirectional:
        buckets //= 2
        sign_offset = np.where(distance > 0, buckets, 0)
        distance = np.abs(distance)
    else:
        distance = np.maximum(-distance, 0)
    exact = buckets // 2
    ratio = np.maximum(distance, exact).astype(np.float32) / np.float32(exact)
    growth = np.log(ratio) / np.float32(math.log(max_distance / exact)) * np.float32(buckets - exact)
    far = np.minimum(exact + growth.astype(np.int32), buckets - 1)
    return (sign_offset + np.where(distance < exact, distance, far)).astype(np.int32)


def _normal(key: jax.Array, shape: tuple[int, ...], std: float, config: T5Config) -> nnx.Param:
    return nnx.Param((std * jax.random.normal(key, shape)).astype(config.param_dtype))


def _rows(x: jax.Array) -> jax.Array:
    """``[B, S, width]`` as ``[B * S, width]``: what a kernel is multiplied with.

    With one token axis instead of two, XLA needs no transposed copy of the output's gradient for the kernel's:
    measured 1.2 times as fast on CPU. Kernels with the same input get the same array.
    """
    return x.reshape(-1, x.shape[-1])


def _dropout(x: jax.Array, rate: float, key: jax.Array | None, site: int) -> jax.Array:
    if key is None or rate == 0:
        return x
    keep = jax.random.bernoulli(jax.random.fold_in(key, site), 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


class Linear(nnx.Module):
    """``x @ kernel``, x ``[tokens, in]``, with kernel ``[L, in, out]``; in a scan's body one of them."""

    def __init__(self, layers: int, fan_in: int, out: int, std: float, config: T5Config, key: jax.Array):
        self.kernel = _normal(key, (layers, fan_in, out), std, config)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x @ self.kernel[...].astype(x.dtype)


class Embedding(nnx.Module):
    """A table ``[rows, width]``."""

    def __init__(self, rows: int, width: int, std: float, config: T5Config, key: jax.Array):
        self.embedding = _normal(key, (rows, width), std, config)


class RMSNorm(nnx.Module):
    """``x / sqrt(mean(x^2) + epsilon) * scale``, computed in float32."""

    def __init__(self, shape: tuple[int, ...], config: T5Config):
        self.config = config
        self.scale = nnx.Param(jnp.ones(shape, config.param_dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.config.norm_epsilon)
        return (wide * inverse * self.scale[...].astype(jnp.float32)).astype(self.config.dtype)


class Attention(nnx.Module):
    """Multi-head attention without biases and, as in T5, without dividing the scores by ``sqrt(d_kv)``."""

    def __init__(self, layers: int, config: T5Config, key: jax.Array):
        width, inner = config.d_model, config.num_heads * config.d_kv
        q, k, v, o = jax.random.split(key, 4)
        self.config = config
        self.q = Linear(layers, width, inner, (width * config.d_kv) ** -0.5, config, q)
        self.k = Linear(layers, width, inner, width**-0.5, config, k)
        self.v = Linear(layers, width, inner, width**-0.5, config, v)
        self.o = Linear(layers, inner, width, inner**-0.5, config, o)

    def __call__(
        self,
        queries: jax.Array,
        keys: jax.Array,
        batch: int,
        biases: tuple[jax.Array, ...],
        dropout_key: jax.Array | None,
        site: int,
    ) -> jax.Array:
        """Attends from ``queries`` to ``keys``, tokens of ``batch`` rows one after the other ``[B * S, width]``."""

        def heads(x: jax.Array) -> jax.Array:
            return x.reshape(batch, -1, self.config.num_heads, self.config.d_kv).swapaxes(1, 2)

        q, k, v = heads(self.q(queries)), heads(self.k(keys)), heads(self.v(keys))
        # Heads are made a leading axis once; einsums over [B, S, heads, d_kv] took 1.15 to 1.5 times as long.
        scores = jnp.einsum("bhqd,bhkd->bhqk", q, k, preferred_element_type=jnp.float32)
        for bias in biases:
            scores = scores + bias
        weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
        weights = _dropout(weights, self.config.dropout_rate, dropout_key, site)
        mixed = jnp.einsum("bhqk,bhkd->bhqd", weights, v).swapaxes(1, 2)
        return self.o(mixed.reshape(queries.shape[0], -1))


class MLP(nnx.Module):
    """``(gelu(x W_0) * x W_1) W_o`` (T5 1.1) or ``relu(x W) W_o`` (T5)."""

    def __init__(self, layers: int, config: T5Config, key: jax.Array):
        width, hidden = config.d_model, config.d_ff
        first, second, out = jax.random.split(key, 3)
        self.config = config
        if config.feed_forward == "gated-gelu":
            self.wi_0 = Linear(layers, width, hidden, width**-0.5, config, first)
            self.wi_1 = Linear(layers, width, hidden, width**-0.5, config, second)
        else:
            self.wi = Linear(layers, width, hidden, width**-0.5, config, first)
        self.wo = Linear(layers, hidden, width, hidden**-0.5, config, out)

    def __call__(self, x: jax.Array, dropout_key: jax.Array | None, site: int) -> jax.Array:
        if self.config.feed_forward == "gated-gelu":
            hidden = jax.nn.gelu(self.wi_0(x), approximate=True) * self.wi_1(x)
        else:
            hidden = jax.nn.relu(self.wi(x))
        return self.wo(_dropout(hidden, self.config.dropout_rate, dropout_key, site))


class EncoderBlock(nnx.Module):
    """Self-attention and feed-forward layer, norm first."""

    def __init__(self, layers: int, config: T5Config, key: jax.Array):
        attention, mlp = jax.random.split(key)
        self.config = config
        self.attention_norm = RMSNorm((layers, config.d_model), config)
        self.attention = Attention(layers, config, attention)
        self.mlp_norm = RMSNorm((layers, config.d_model), config)
        self.mlp = MLP(layers, config, mlp)

    def __call__(self, x: jax.Array, biases: tuple[jax.Array, ...], dropout_key: jax.Array | None) -> jax.Array:
        rate = self.config.dropout_rate
        normed = _rows(self.attention_norm(x))
        attended = self.attention(normed, normed, len(x), biases, dropout_key, 0)
        x = x + _dropout(attended, rate, dropout_key, 1).reshape(x.shape)
        hidden = self.mlp(_rows(self.mlp_norm(x)), dropout_key, 2)
        return x + _dropout(hidden, rate, dropout_key, 3).reshape(x.shape)


class DecoderBlock(nnx.Module):
    """Self-attention, attention to the encoded input and feed-forward layer, norm first."""

    def __init__(self, layers: int, config: T5Config, key: jax.Array):
        self_attention, cross_attention, mlp = jax.random.split(key, 3)
        self.config = config
        self.self_attention_norm = RMSNorm((layers, config.d_model), config)
        self.self_attention = Attention(layers, config, self_attention)
        self.cross_attention_norm = RMSNorm((layers, config.d_model), config)
        self.cross_attention = Attention(layers, config, cross_attention)
        self.mlp_norm = RMSNorm((layers, config.d_model), config)
        self.mlp = MLP(layers, config, mlp)

    def __call__(
        self,
        x: jax.Array,
        encoded: jax.Array,
        biases: tuple[jax.Array, ...],
        cross_biases: tuple[jax.Array, ...],
        dropout_key: jax.Array | None,
    ) -> jax.Array:
        rate = self.config.dropout_rate
        normed = _rows(self.self_attention_norm(x))
        attended = self.self_attention(normed, normed, len(x), biases, dropout_key, 0)
        x = x + _dropout(attended, rate, dropout_key, 1).reshape(x.shape)
        normed = _rows(self.cross_attention_norm(x))
        attended = self.cross_attention(normed, encoded, len(x), cross_biases, dropout_key, 2)
        x = x + _dropout(attended, rate, dropout_key, 3).reshape(x.shape)
        hidden = self.mlp(_rows(self.mlp_norm(x)), dropout_key, 4)
        return x + _dropout(hidden, rate, dropout_key, 5).reshape(x.shape)


class Stack(nnx.Module):
    """All layers of the encoder or the decoder, their parameters stacked along the first axis."""

    def __init__(self, block: type[EncoderBlock] | type[DecoderBlock], layers: int, config: T5Config, key: jax.Array):
        block_key, bias_key = jax.random.split(key)
        self.config = config
        self.layers = layers
        self.block = block(layers, config, block_key)
        std = config.d_model**-0.5
        self.relative_bias = Embedding(config.relative_buckets, config.num_heads, std, config, bias_key)
        self.final_norm = RMSNorm((config.d_model,), config)

    def position_bias(self, queries: int, keys: int, bidirectional: bool) -> jax.Array:
        """Learned bias of every query and key position, float32 ``[1, heads, queries, keys]``."""
        config = self.config
        buckets = position_buckets(queries, keys, bidirectional, config.relative_buckets, config.relative_max_distance)
        table = self.relative_bias.embedding[...].astype(jnp.float32)
        # A product with one-hot rows, since the transpose of a lookup is a scatter, slow on CPU and TPU.
        chosen = (buckets[..., None] == jnp.arange(config.relative_buckets)).astype(jnp.float32)
        return jnp.einsum("qkn,nh->hqk", chosen, table, precision=jax.lax.Precision.HIGHEST)[None]

    def __call__(
        self,
        x: jax.Array,
        apply: Callable[[Any, jax.Array, jax.Array | None], jax.Array],
        key: jax.Array | None,
    ) -> jax.Array:
        """Applies ``apply(layer, x, dropout_key)`` for one layer after the other, and the final norm."""
        rate = self.config.dropout_rate
        graph, stacked = nnx.split(self.block)
        keys = None if key is None or rate == 0 else jax.random.split(jax.random.fold_in(key, 0), self.layers)

        def body(x: jax.Array, layer: tuple[Any, jax.Array | None]) -> tuple[jax.Array, None]:
            state, layer_key = layer
            return apply(nnx.merge(graph, state), x, layer_key), None

        x = _dropout(x.astype(self.config.dtype), rate, key, 1)
        # Inside of a scan nothing can be merged across the recomputation, the barrier against it only costs.
        body = jax.checkpoint(body, prevent_cse=False) if self.config.remat else body
        x, _ = jax.lax.scan(body, x, (stacked, keys))
        return _dropout(self.final_norm(x), rate, key, 2)


class T5(nnx.Module):
    """Encoder-decoder transformer with relative positions (arXiv 1910.10683), optionally with item tokens.

    Token ids from ``config.vocab_size`` on are the added items, in rows of their own (``item_embedding``,
    ``item_head``), so that the pretrained rows can stay as they are while these train. Whether dropout is
    applied is an argument of each call, not a state of the model.

    Args:
      config: shape of the model.
      key: PRNG key of the random weights.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> config = T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=16, num_layers=2, num_decoder_layers=1,
      ...                   num_heads=2)
      >>> model = T5.create(config, jax.random.key(0))
      >>> model(jnp.array([[5, 6, 1]]), decoder_input_ids=jnp.array([[0, 7]])).shape
      (1, 2, 20)
    """

    def __init__(self, config: T5Config, key: jax.Array):
        encoder, decoder, embedding, head, item_embedding, item_head = jax.random.split(key, 6)
        width = config.d_model
        self.config = config
        self.token_embedding = Embedding(config.vocab_size, width, 1.0, config, embedding)
        self.encoder = Stack(EncoderBlock, config.num_layers, config, encoder)
        self.decoder = Stack(DecoderBlock, config.num_decoder_layers, config, decoder)
        # With the unit-variance head of the reference code the first logits have a standard deviation of
        # sqrt(d_model) and the first loss is tens of nats; with this one training starts near log(V).
        std = width**-0.5
        if not config.tie_word_embeddings:
            self.lm_head = Embedding(config.vocab_size, width, std, config, head)
        if config.num_added_tokens:
            added = config.num_added_tokens
            self.item_embedding = Embedding(added, width, 1.0, config, item_embedding)
            if not config.tie_word_embeddings:
                self.item_head = Embedding(added, width, std, config, item_head)

    @classmethod
    def create(cls, config: T5Config, key: jax.Array) -> "T5":
        """A model with random weights: normal, variances as in the reference code but for the output layer."""
        return cls(config, key)

    @classmethod
    def from_params(cls, config: T5Config, params: Mapping[str, Any]) -> "T5":
        """A model with given weights.

        Args:
          config: shape of the model.
          params: leaf path, such as ``"encoder/block/attention/q/kernel"``, to array.

        Raises:
          ValueError: if a leaf is missing, unknown or of another shape.
        """
        graph, abstract = nnx.split(nnx.eval_shape(lambda: cls(config, jax.random.key(0))))
        shapes, tree = jax.tree_util.tree_flatten_with_path(abstract)
        names = [leaf_path(path) for path, _ in shapes]
        missing, unknown = set(names) - set(params), set(params) - set(names)
        if missing or unknown:
            raise ValueError(
                f"parameters do not fit this T5Config: missing {sorted(missing)[:5]}, unknown {sorted(unknown)[:5]}"
            )
        leaves = []
        for name, (_, leaf) in zip(names, shapes, strict=True):
            if params[name].shape != leaf.shape:
                raise ValueError(f"{name} has shape {params[name].shape}, this T5Config needs {leaf.shape}")
            leaves.append(jnp.asarray(params[name], leaf.dtype))
        return nnx.merge(graph, jax.tree_util.tree_unflatten(tree, leaves))

    def embed(self, ids: jax.Array) -> jax.Array:
        """Rows of tokens and items ``[..., d_model]`` in the compute dtype."""
        config = self.config
        # Each lookup answers 0 for the other table's ids: neither table is copied into one of both, and the
        # backward pass adds a row to one table only.
        rows = self.token_embedding.embedding[...].at[ids].get(mode="fill", fill_value=0)
        if config.num_added_tokens:
            added = config.num_added_tokens
            item = jnp.where(ids < config.vocab_size, added, ids - config.vocab_size)
            rows = rows + self.item_embedding.embedding[...].at[item].get(mode="fill", fill_value=0)
        return rows.astype(config.dtype)

    def encode(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        *,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """Encodes inputs.

        Args:
          input_ids: int ``[B, S]``.
          attention_mask: ``[B, S]``, 0 for padding; ``None``: no padding.
          dropout_key: PRNG key; ``None``: no dropout.

        Returns:
          ``[B, S, d_model]`` in the compute dtype.
        """
        length = input_ids.shape[1]
        biases: tuple[jax.Array, ...] = (self.encoder.position_bias(length, length, bidirectional=True),)
        biases += _key_bias(attention_mask)
        key = None if dropout_key is None else jax.random.fold_in(dropout_key, 0)
        return self.encoder(self.embed(input_ids), lambda block, x, layer_key: block(x, biases, layer_key), key)

    def decode(
        self,
        decoder_input_ids: jax.Array,
        encoded: jax.Array,
        attention_mask: jax.Array | None = None,
        decoder_attention_mask: jax.Array | None = None,
        *,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """Decodes all positions of ``decoder_input_ids`` at once, each seeing those before it.

        Args:
          decoder_input_ids: int ``[B, S_dec]``, beginning with the decoder's start token.
          encoded: ``[B, S, d_model]`` from `encode`.
          attention_mask: ``[B, S]`` of the encoded input.
          decoder_attention_mask: ``[B, S_dec]``, 0 for padding.
          dropout_key: PRNG key; ``None``: no dropout.

        Returns:
          ``[B, S_dec, d_model]`` after the final norm, for `logits`.
        """
        length = decoder_input_ids.shape[1]
        causal = np.where(np.tri(length, dtype=bool), 0, _MASKED).astype(np.float32)
        position = self.decoder.position_bias(length, length, bidirectional=False) + causal
        biases = (position, *_key_bias(decoder_attention_mask))
        cross_biases = _key_bias(attention_mask)
        encoded_rows = _rows(encoded.astype(self.config.dtype))
        key = None if dropout_key is None else jax.random.fold_in(dropout_key, 1)
        return self.decoder(
            self.embed(decoder_input_ids),
            lambda block, x, layer_key: block(x, encoded_rows, biases, cross_biases, layer_key),
            key,
        )

    def logits(self, hidden: jax.Array, vocabulary: Vocabulary = "full") -> jax.Array:
        """Scores of the tokens of a vocabulary.

        Args:
          hidden: ``[..., d_model]`` from `decode`.
          vocabulary: ``"full"``: all V + N tokens; ``"base"``: the V pretrained ones; ``"items"``: the end token,
            in column 0, and the N added items in order.

        Returns:
          float32 ``[..., V + N]``, ``[..., V]`` or ``[..., 1 + N]``.

        Raises:
          ValueError: if ``vocabulary`` is none of these, or ``"items"`` and the model has no items.
        """
        config = self.config
        tied = config.tie_word_embeddings
        base = (self.token_embedding if tied else self.lm_head).embedding[...]
        if vocabulary not in ("full", "base", "items"):
            raise ValueError(f"vocabulary must be 'full', 'base' or 'items', got {vocabulary!r}")
        if vocabulary == "items" and not config.num_added_tokens:
            raise ValueError("vocabulary='items' needs a model with item tokens: grow it (gems_jax.items.grow)")
        if tied if config.scale_decoder_outputs is None else config.scale_decoder_outputs:
            hidden = hidden * config.d_model**-0.5
        tables = []
        if vocabulary != "items":
            tables.append(base)
        else:
            tables.append(base[config.eos_token_id][None])
        if config.num_added_tokens and vocabulary != "base":
            tables.append((self.item_embedding if tied else self.item_head).embedding[...])
        parts = [
            jnp.einsum("...d,vd->...v", hidden, table.astype(hidden.dtype), preferred_element_type=jnp.float32)
            for table in tables
        ]
        return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)

    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        decoder_input_ids: jax.Array | None = None,
        decoder_attention_mask: jax.Array | None = None,
        *,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """Logits of the next token at every decoder position, float32 ``[B, S_dec, V + N]``.

        Args:
          input_ids: int ``[B, S]``.
          attention_mask: ``[B, S]``, 0 for padding; ``None``: no padding.
          decoder_input_ids: int ``[B, S_dec]``, beginning with the decoder's start token.
          decoder_attention_mask: ``[B, S_dec]``, 0 for padding.
          dropout_key: PRNG key; ``None``: no dropout.

        Raises:
          ValueError: without ``decoder_input_ids``.
        """
        if decoder_input_ids is None:
            raise ValueError(
                "T5 needs decoder_input_ids [B, S_dec]: the labels shifted right behind decoder_start_token_id="
                f"{self.config.decoder_start_token_id}"
            )
        encoded = self.encode(input_ids, attention_mask, dropout_key=dropout_key)
        hidden = self.decode(
            decoder_input_ids, encoded, attention_mask, decoder_attention_mask, dropout_key=dropout_key
        )
        return self.logits(hidden)


def _key_bias(mask: jax.Array | None) -> tuple[jax.Array, ...]:
    """What is added to the scores of keys ``[B, S]`` so that padding gets no weight, ``[B, 1, 1, S]``."""
    if mask is None:
        return ()
    return (jnp.where(jnp.asarray(mask)[:, None, None, :] > 0, 0.0, _MASKED).astype(jnp.float32),)
