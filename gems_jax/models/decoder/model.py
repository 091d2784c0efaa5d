"""Decoder-only transformers of the Llama, Mistral, Qwen2 and Qwen3 families in Flax NNX, layers in one scan."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from gems_jax.models.decoder.attention import cached_attention, causal_attention
from gems_jax.models.decoder.beams import DecoderBeams
from gems_jax.models.decoder.cache import DecoderCache
from gems_jax.models.decoder.config import DecoderConfig
from gems_jax.models.decoder.layers import Block
from gems_jax.models.decoder.rope import rotation
from gems_jax.models.family import Layout
from gems_jax.models.layer_stack import apply_layers
from gems_jax.models.layers import Embedding, RMSNorm
from gems_jax.models.params import kernel_sizes
from gems_jax.models.vocabulary import VocabularyModel

Window = int | jax.Array | None
KeysValues = tuple[jax.Array, jax.Array]
# The window of a layer without one, where others have one: longer than any text.
_EVERYTHING = 2**30


class Decoder(VocabularyModel):
    """Causal transformer with rotary positions (arXiv 2302.13971), optionally with item tokens.

    Its items and what it does with tokens: see `VocabularyModel`.

    Args:
      config: shape of the model.
      key: PRNG key of the random weights.

    Example:
      >>> config = DecoderConfig(vocab_size=20, d_model=8, d_ff=16, num_layers=2, num_heads=4, num_kv_heads=2,
      ...                        head_dim=2)
      >>> model = Decoder.create(config, jax.random.key(0))
      >>> model(jnp.array([[5, 6, 1]])).shape
      (1, 3, 20)
    """

    layout: ClassVar[Layout] = "decoder"

    def __init__(self, config: DecoderConfig, key: jax.Array):
        block, embedding, head, item_embedding, item_head = jax.random.split(key, 5)
        super().__init__(config, key)

        def table(num_rows: int, key: jax.Array) -> Embedding:
            return Embedding((num_rows, config.d_model), config.initializer_range, config, key)

        self.token_embedding = table(config.vocab_size, embedding)
        self.block = Block(config, block)
        self.final_norm = RMSNorm((config.d_model,), config)
        if not config.tie_word_embeddings:
            self.lm_head = table(config.vocab_size, head)
        if config.num_added_tokens:
            self.item_embedding = table(config.num_added_tokens, item_embedding)
            if not config.tie_word_embeddings:
                self.item_head = table(config.num_added_tokens, item_head)

    @classmethod
    def create(cls, config: DecoderConfig, key: jax.Array) -> "Decoder":
        """A model with random weights: normal with ``config.initializer_range``, biases 0, norms 1."""
        return cls(config, key)

    def hidden(self, input_ids: jax.Array, attention_mask: jax.Array | None = None) -> jax.Array:
        """Final states of all tokens, each seeing those before it.

        Args:
          input_ids: int ``[B, S]``.
          attention_mask: ``[B, S]``, 0 for padding, on either side; ``None``: no padding, or only on the right,
            where no token sees it: the fastest case, see `causal_attention`.

        Returns:
          ``[B, S, d_model]`` after the final norm, in the compute dtype, for `logits`; of no meaning at padding.
        """
        return self._causal(input_ids, _positions(input_ids, attention_mask), keep=False)[0]

    def __call__(self, input_ids: jax.Array, attention_mask: jax.Array | None = None) -> jax.Array:
        """Logits of the token after each, float32 ``[B, S, V + N]``; arguments as of `hidden`."""
        return self.logits(self.hidden(input_ids, attention_mask))

    def batch_hidden(self, batch: Mapping[str, jax.Array], dropout_key: jax.Array | None = None) -> jax.Array:
        """See `gems_jax.models.family.LanguageModel.batch_hidden`; there is no dropout.

        Padding is on the right, where no token of the text sees it: attention needs no mask.
        """
        return self.hidden(batch["input_ids"])

    def text_hidden(self, input_ids: jax.Array, attention_mask: jax.Array) -> jax.Array:
        """See `gems_jax.models.family.LanguageModel.text_hidden`; no token sees the padding behind it."""
        return self.hidden(input_ids)

    def start_beams(self, inputs: Mapping[str, jax.Array]) -> tuple[jax.Array, DecoderBeams]:
        """See `gems_jax.models.family.LanguageModel.start_beams`."""
        return DecoderBeams.start(self, inputs)

    def flops(self, input_tokens: float, answer_tokens: float, input_length: float) -> float:
        """See `gems_jax.models.family.LanguageModel.flops`."""
        config = self.config
        width = config.num_heads * config.head_dim
        head = self.output_size * answer_tokens
        attention = 12 * config.num_layers * width * input_length * input_tokens / 2  # half of it is masked
        return 6 * (sum(kernel_sizes(self).values()) * input_tokens + head) + attention

    def start(self, inputs: Mapping[str, jax.Array], max_new_tokens: int) -> tuple[jax.Array, DecoderCache]:
        """Reads prompts.

        Args:
          inputs: ``"input_ids"`` int ``[B, S]`` and, if there is padding, ``"attention_mask"`` ``[B, S]``, on either
            side, with at least one token a row.
          max_new_tokens: for how many further tokens the cache shall have room.

        Returns:
          The logits of the token after each prompt, float32 ``[B, V + N]``, and the cache for `step`.
        """
        ids, mask = jnp.asarray(inputs["input_ids"]), inputs.get("attention_mask")
        positions = _positions(ids, mask)
        hidden, keys_values = self._causal(ids, positions, keep=True)
        positions = jnp.broadcast_to(jnp.arange(ids.shape[1]) if positions is None else positions, ids.shape)
        last = jnp.take_along_axis(hidden, positions.argmax(axis=1)[:, None, None], axis=1)[:, 0]
        return self.logits(last), DecoderCache.of_prompt(*keys_values, positions, max_new_tokens)

    def step(self, ids: jax.Array, cache: DecoderCache) -> tuple[jax.Array, DecoderCache]:
        """One more token for each row.

        Args:
          ids: int ``[B]``.
          cache: from `start` or the step before, with room for a token.

        Returns:
          The logits of the token after these, float32 ``[B, V + N]``, and the cache with these.
        """
        hidden, cache = self.extend(ids[:, None], cache)
        return self.logits(hidden[:, 0]), cache

    def extend(self, ids: jax.Array, cache: DecoderCache) -> tuple[jax.Array, DecoderCache]:
        """Several more tokens for each row.

        Args:
          ids: int ``[B, n]``, no padding.
          cache: from `start`, with room for n tokens.

        Returns:
          ``[B, n, d_model]`` after the final norm, and the cache with the tokens.
        """
        count, used = ids.shape[1], cache.used
        positions = cache.next_position[:, None] + jnp.arange(count, dtype=jnp.int32)
        cache = cache.announce(count)

        def attend(q: jax.Array, k: jax.Array, v: jax.Array, window: Window, kept: KeysValues) -> jax.Array:
            k, v = (
                jax.lax.dynamic_update_slice(old, new, (0, used, 0, 0)) for old, new in zip(kept, (k, v), strict=True)
            )
            return cached_attention(q, k, v, positions, cache.positions, window)

        hidden, keys_values = self._layers(ids, positions, attend, (cache.keys, cache.values), keep=True)
        return hidden, cache.add(*keys_values)

    def _causal(self, ids: jax.Array, positions: jax.Array | None, keep: bool) -> tuple[jax.Array, KeysValues]:
        """Whole texts at once, each token seeing those before it."""
        key_mask = None if positions is None else positions >= 0
        positions = jnp.arange(ids.shape[1]) if positions is None else jnp.maximum(positions, 0)

        def attend(q: jax.Array, k: jax.Array, v: jax.Array, window: Window, kept: None) -> jax.Array:
            return causal_attention(q, k, v, key_mask, window, self.config.attention)

        return self._layers(ids, positions, attend, None, keep)

    def _layers(
        self, ids: jax.Array, positions: jax.Array, attend: Callable[..., jax.Array], kept: Any, keep: bool
    ) -> tuple[jax.Array, Any]:
        """All layers and the final norm.

        Args:
          ids, positions: int ``[B, S]``.
          attend: ``attend(q, k, v, window, kept)`` of one layer.
          kept: tree of arrays ``[L, ...]`` for ``attend``.
          keep: whether the keys and values ``[L, B, S, kv_heads, head_dim]`` are asked for, else ``None``.
        """
        config = self.config
        windows = config.windows
        by_layer = None
        if isinstance(windows, tuple):
            by_layer = jnp.array([_EVERYTHING if window is None else window for window in windows])
        angles = rotation(positions, config.head_dim, config.rope_theta, config.rope_scaling)

        def apply(block: Any, x: jax.Array, other: tuple[Any, Any]) -> tuple[jax.Array, Any]:
            window, kept = other
            window = windows if by_layer is None else window
            x, keys_values = block(x, angles, lambda q, k, v: attend(q, k, v, window, kept))
            return x, keys_values if keep else None

        x, keys_values = apply_layers(self.block, apply, self.embed(ids), (by_layer, kept), config.remat)
        return self.final_norm(x), keys_values


def _positions(ids: jax.Array, attention_mask: jax.Array | None) -> jax.Array | None:
    """int32 ``[B, S]``: how far each token is behind the first of its row, -1 for padding; no mask: ``None``."""
    if attention_mask is None:
        return None
    real = jnp.asarray(attention_mask) > 0
    if real.shape != ids.shape:
        raise ValueError(f"attention_mask has shape {real.shape}, input_ids {ids.shape}: they must be the same")
    index = jnp.arange(ids.shape[1], dtype=jnp.int32)
    return jnp.where(real, index - real.argmax(axis=1)[:, None].astype(jnp.int32), -1)
