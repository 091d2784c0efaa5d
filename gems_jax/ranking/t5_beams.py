"""T5's decoder for several beams an input, which share the keys and values of what was encoded."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gems_jax.models.t5 import T5
from gems_jax.models.t5_cache import T5Cache
from gems_jax.models.t5_stack import key_mask


class T5Beams(NamedTuple):
    """What is kept from one token to the next.

    Args:
      keys, values: ``[layers, beams, B, max_length, heads, d_kv]`` of the tokens so far.
      encoded: keys and values of the inputs, one for all beams, and the number of tokens so far.
    """

    keys: jax.Array
    values: jax.Array
    encoded: T5Cache

    @classmethod
    def start(cls, model: T5, inputs: Mapping[str, jax.Array], room: int) -> tuple[jax.Array, "T5Beams"]:
        """Encodes inputs; one beam each.

        Args:
          model: the model.
          inputs: ``"input_ids"`` and ``"attention_mask"``, ``[B, S]``.
          room: how many tokens may follow.

        Returns:
          Logits of the first token, float32 ``[B, V + N]``, and the beams.
        """
        logits, cache = model.start(inputs, room + 1)
        return logits, cls(cache.keys[:, None], cache.values[:, None], cache)

    def take(self, parents: jax.Array) -> "T5Beams":
        """The beams int ``[B, n]`` of each row, in their order; a beam may be taken more than once."""
        rows = jnp.arange(len(parents))
        return self._replace(keys=self.keys[:, parents.T, rows], values=self.values[:, parents.T, rows])

    def step(self, model: T5, ids: jax.Array) -> tuple[jax.Array, "T5Beams"]:
        """Decodes one more token a beam.

        Args:
          model: the model.
          ids: int ``[B, n]``.

        Returns:
          ``[B, n, d_model]`` after the final norm, and the beams with these tokens.
        """
        encoded, position = self.encoded, self.encoded.length
        length = self.keys.shape[3]
        buckets = jnp.asarray(model.decoder.buckets(length))[position]
        mask = (jnp.arange(length) <= position)[None, None, None]
        cross_mask = key_mask(encoded.cross_mask)

        def apply(block: Any, x: jax.Array, bias: jax.Array, memory: tuple[jax.Array, ...]) -> Any:
            *own, cross_keys, cross_values = memory
            # Mapping over the beams alone leaves the keys and values of the encoded input one for all of them.
            return jax.vmap(
                lambda x, keys, values: block.step(
                    x, (keys, values), (cross_keys, cross_values), position, bias, mask, cross_mask
                )
            )(x, *own)

        hidden, (keys, values) = model.decoder.scan(
            model.embed(ids.T[..., None]),
            apply,
            lambda table: table.astype(jnp.float32)[buckets].T[None, :, None],
            (self.keys, self.values, encoded.cross_keys, encoded.cross_values),
        )
        hidden = model.decoder.final_norm(hidden)[:, :, 0].swapaxes(0, 1)
        return hidden, T5Beams(keys, values, encoded._replace(length=position + 1))
