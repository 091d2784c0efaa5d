"""T5, mT5 and UMT5 in Flax NNX, layers stacked so that a whole stack is one scan."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from gems_jax.models.family import Layout
from gems_jax.models.layer_stack import apply_layers
from gems_jax.models.layers import Embedding, rows
from gems_jax.models.params import kernel_sizes
from gems_jax.models.t5.beams import T5Beams
from gems_jax.models.t5.config import T5Config
from gems_jax.models.t5.stack import DecoderBlock, EncoderBlock, Stack, T5Cache, key_mask
from gems_jax.models.vocabulary import Vocabulary, VocabularyModel


class T5(VocabularyModel):
    """Encoder-decoder transformer with relative positions (arXiv 1910.10683), optionally with item tokens.

    Its items and what it does with tokens: see `VocabularyModel`. Whether dropout is applied is an argument of each
    call, not a state of the model.

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

    layout: ClassVar[Layout] = "encoder_decoder"

    def __init__(self, config: T5Config, key: jax.Array):
        encoder, decoder, embedding, head, item_embedding, item_head = jax.random.split(key, 6)
        width = config.d_model
        super().__init__(config, key)
        self.token_embedding = Embedding((config.vocab_size, width), 1.0, config, embedding)
        self.encoder = Stack(EncoderBlock, config.num_layers, config, encoder)
        self.decoder = Stack(DecoderBlock, config.num_decoder_layers, config, decoder)
        # With the unit-variance head of the reference code the first logits have a standard deviation of
        # sqrt(d_model) and the first loss is tens of nats; with this one training starts near log(V).
        std = width**-0.5
        if not config.tie_word_embeddings:
            self.lm_head = Embedding((config.vocab_size, width), std, config, head)
        if config.num_added_tokens:
            added = config.num_added_tokens
            self.item_embedding = Embedding((added, width), 1.0, config, item_embedding)
            if not config.tie_word_embeddings:
                self.item_head = Embedding((added, width), std, config, item_head)

    @classmethod
    def create(cls, config: T5Config, key: jax.Array) -> "T5":
        """A model with random weights: normal, variances as in the reference code but for the output layer."""
        return cls(config, key)

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
        mask = key_mask(attention_mask)
        key = None if dropout_key is None else jax.random.fold_in(dropout_key, 0)
        return self.encoder(
            self.embed(input_ids), lambda block, x, bias, layer_key: block(x, bias, mask, layer_key), key
        )

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
        mask: Any = np.tri(length, dtype=bool)[None, None]
        if decoder_attention_mask is not None:
            mask = mask & key_mask(decoder_attention_mask)
        cross_mask = key_mask(attention_mask)
        encoded_rows = rows(encoded.astype(self.config.dtype))
        key = None if dropout_key is None else jax.random.fold_in(dropout_key, 1)
        return self.decoder(
            self.embed(decoder_input_ids),
            lambda block, x, bias, layer_key: block(x, encoded_rows, bias, mask, cross_mask, layer_key),
            key,
        )

    def batch_hidden(self, batch: Mapping[str, jax.Array], dropout_key: jax.Array | None = None) -> jax.Array:
        """See `gems_jax.models.family.LanguageModel.batch_hidden`."""
        inputs, mask = batch["input_ids"], batch["attention_mask"]
        encoded = self.encode(inputs, mask, dropout_key=dropout_key)
        return self.decode(batch["decoder_input_ids"], encoded, mask, dropout_key=dropout_key)

    def text_hidden(self, input_ids: jax.Array, attention_mask: jax.Array) -> jax.Array:
        """See `gems_jax.models.family.LanguageModel.text_hidden`: those of the encoder."""
        return self.encode(input_ids, attention_mask)

    def start_beams(self, inputs: Mapping[str, jax.Array]) -> tuple[jax.Array, T5Beams]:
        """See `gems_jax.models.family.LanguageModel.start_beams`."""
        return T5Beams.start(self, inputs)

    def flops(self, input_tokens: float, answer_tokens: float, input_length: float) -> float:
        """See `gems_jax.models.family.LanguageModel.flops`."""
        config, kernels = self.config, kernel_sizes(self)
        width = config.num_heads * config.d_kv
        per_input = sum(
            size
            for path, size in kernels.items()
            if path.startswith("encoder/") or path.endswith(("cross_attention/k/kernel", "cross_attention/v/kernel"))
        )
        per_answer = sum(kernels.values()) - per_input
        head = self.output_size * answer_tokens
        attention = (
            12 * width * input_length * (config.num_layers * input_tokens + config.num_decoder_layers * answer_tokens)
        )
        return 6 * (per_input * input_tokens + per_answer * answer_tokens + head) + attention

    def logit_parts(self, hidden: jax.Array, vocabulary: Vocabulary = "full") -> list[jax.Array]:
        """See `VocabularyModel.logit_parts`; ``hidden [..., d_model]`` from `decode`, scaled where T5 does so."""
        scale = self.config.d_model**-0.5 if self.config.scales_outputs else 1.0
        return super().logit_parts(hidden * scale if scale != 1.0 else hidden, vocabulary)

    def start(self, inputs: Mapping[str, jax.Array], max_new_tokens: int) -> tuple[jax.Array, T5Cache]:
        """Encodes inputs and decodes the start token.

        Args:
          inputs: ``"input_ids"`` int ``[B, S]`` and, if there is padding, ``"attention_mask"`` ``[B, S]``.
          max_new_tokens: most tokens that will be generated; it sizes the cache.

        Returns:
          Logits of the first token, float32 ``[B, V + N]``, and the cache for `step`.

        Raises:
          ValueError: if ``max_new_tokens`` is less than 1.
        """
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
        config, ids = self.config, inputs["input_ids"]
        mask = inputs.get("attention_mask")
        encoded = rows(self.encode(ids, mask))

        def cross_keys_values(block: Any, x: None, _: None) -> tuple[None, tuple[jax.Array, jax.Array]]:
            return x, block.cross_attention.keys_values(encoded, len(ids))

        _, (cross_keys, cross_values) = apply_layers(self.decoder.block, cross_keys_values, None, None)
        shape = (config.num_decoder_layers, len(ids), max_new_tokens, config.num_heads, config.d_kv)
        empty = jnp.zeros(shape, config.dtype)
        cross_mask = jnp.ones(ids.shape, bool) if mask is None else jnp.asarray(mask) > 0
        cache = T5Cache(empty, empty, cross_keys, cross_values, cross_mask, jnp.zeros((), jnp.int32))
        return self.step(jnp.full(len(ids), config.decoder_start_token_id, jnp.int32), cache)

    def step(self, ids: jax.Array, cache: T5Cache) -> tuple[jax.Array, T5Cache]:
        """Decodes one more token a row.

        Args:
          ids: int ``[B]``.
          cache: from `start` or the last step.

        Returns:
          Logits of the next token, float32 ``[B, V + N]``, and the cache with these tokens.
        """
        length = cache.keys.shape[2]
        buckets = jnp.asarray(self.decoder.buckets(length))[cache.length]
        mask = (jnp.arange(length) <= cache.length)[None, None, None]
        cross_mask = key_mask(cache.cross_mask)

        def apply(block: Any, x: jax.Array, bias: jax.Array, memory: tuple[jax.Array, ...]) -> Any:
            keys, values, *cross = memory
            return block.step(x, (keys, values), tuple(cross), cache.length, bias, mask, cross_mask)

        hidden, (keys, values) = self.decoder.scan(
            self.embed(ids[:, None]),
            apply,
            lambda table: table.astype(jnp.float32)[buckets].T[None, :, None],
            (cache.keys, cache.values, cache.cross_keys, cache.cross_values),
        )
        logits = self.logits(self.decoder.final_norm(hidden)[:, 0])
        return logits, cache._replace(keys=keys, values=values, length=cache.length + 1)

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
