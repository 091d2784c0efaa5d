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

    Keys and values stay where they were written. A beam is the list of the places of its tokens: what the search
    reorders is that list, and a layer gathers what its beams need when its turn comes.

    Args:
      keys, values: ``[layers, places, B, heads, d_kv]`` of all tokens that any beam has read.
      places: int32 ``[beams, B, length]``, where those of a beam's tokens are.
      encoded: keys and values of the inputs, one for all beams.
    """

    keys: jax.Array
    values: jax.Array
    places: jax.Array
    encoded: T5Cache

    @classmethod
    def start(cls, model: T5, inputs: Mapping[str, jax.Array]) -> tuple[jax.Array, "T5Beams"]:
        """Encodes inputs; one beam each.

        Args:
          model: the model.
          inputs: ``"input_ids"`` and ``"attention_mask"``, ``[B, S]``.

        Returns:
          Logits of the first token, float32 ``[B, V + N]``, and the beams.
        """
        logits, cache = model.start(inputs, 1)
        places = jnp.zeros((1, len(logits), 1), jnp.int32)
        return logits, cls(cache.keys.swapaxes(1, 2), cache.values.swapaxes(1, 2), places, cache)

    def take(self, parents: jax.Array) -> "T5Beams":
        """The beams int ``[B, n]`` of each row, in their order; a beam may be taken more than once."""
        return self._replace(places=jnp.take_along_axis(self.places, parents.T[..., None], axis=0))

    def step(self, model: T5, ids: jax.Array) -> tuple[jax.Array, "T5Beams"]:
        """Decodes one more token a beam.

        Args:
          model: the model.
          ids: int ``[B, n]``.

        Returns:
          ``[B, n, d_model]`` after the final norm, and the beams with these tokens.
        """
        beams, rows, length = self.places.shape
        buckets = model.decoder.buckets(length + 1)[length]
        cross_mask = key_mask(self.encoded.cross_mask)
        row = jnp.arange(rows)[:, None]

        def apply(block: Any, x: jax.Array, bias: jax.Array, memory: tuple[jax.Array, ...]) -> Any:
            *kept, cross_keys, cross_values = memory
            # With room for one more.
            room = ((0, 0), (0, 0), (0, 1), (0, 0), (0, 0))
            own = [jnp.pad(side[self.places, row], room) for side in kept]
            # Mapping over the beams alone leaves the keys and values of the encoded input one for all of them.
            x, written = jax.vmap(
                lambda x, keys, values: block.step(
                    x, (keys, values), (cross_keys, cross_values), length, bias, None, cross_mask
                )
            )(x, *own)
            return x, tuple(side[:, :, length] for side in written)

        hidden, new = model.decoder.scan(
            model.embed(ids.T[..., None]),
            apply,
            lambda table: table.astype(jnp.float32)[buckets].T[None, :, None],
            (self.keys, self.values, self.encoded.cross_keys, self.encoded.cross_values),
        )
        hidden = model.decoder.final_norm(hidden)[:, :, 0].swapaxes(0, 1)
        keys, values = (jnp.concatenate(sides, axis=1) for sides in zip((self.keys, self.values), new, strict=True))
        here = self.keys.shape[1] + jnp.arange(beams, dtype=jnp.int32)
        places = jnp.concatenate([self.places, jnp.broadcast_to(here[:, None, None], (beams, rows, 1))], axis=2)
        return hidden, T5Beams(keys, values, places, self.encoded)
