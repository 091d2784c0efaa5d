"""T5's decoder for several beams an input, which share the keys and values of what was encoded."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gems_jax.models.t5.stack import T5Cache, key_mask


class T5Beams(NamedTuple):
    """The state that a search keeps from one token to the next.

    Keys and values stay where they were written. A beam is the list of the slots of its tokens: the search reorders
    that list, and a layer gathers what its beams need when its turn comes.

    Args:
      keys, values: ``[layers, slots, B, heads, d_kv]`` of all tokens that any beam has read.
      slots: int32 ``[beams, B, length]``, the slots of a beam's tokens.
      encoded: keys and values of the inputs, one for all beams.
    """

    keys: jax.Array
    values: jax.Array
    slots: jax.Array
    encoded: T5Cache

    @classmethod
    def start(cls, model: Any, inputs: Mapping[str, jax.Array]) -> tuple[jax.Array, "T5Beams"]:
        """Encodes inputs; one beam each.

        Args:
          model: a `T5`.
          inputs: ``"input_ids"`` and ``"attention_mask"``, ``[B, S]``.

        Returns:
          Logits of the first token, float32 ``[B, V + N]``, and the beams.
        """
        logits, cache = model.start(inputs, 1)
        slots = jnp.zeros((1, len(logits), 1), jnp.int32)
        return logits, cls(cache.keys.swapaxes(1, 2), cache.values.swapaxes(1, 2), slots, cache)

    def take(self, parents: jax.Array) -> "T5Beams":
        """The beams int ``[B, n]`` of each row, in their order; a beam may be taken more than once."""
        return self._replace(slots=jnp.take_along_axis(self.slots, parents.T[..., None], axis=0))

    def step(self, model: Any, ids: jax.Array) -> tuple[jax.Array, "T5Beams"]:
        """Decodes more tokens of each beam, in one pass.

        Args:
          model: a `T5`.
          ids: int ``[B, n, T]``.

        Returns:
          ``[B, n, T, d_model]`` after the final norm, and the beams with these tokens.
        """
        beams, rows, length = self.slots.shape
        more = ids.shape[2]
        total = length + more
        buckets = model.decoder.buckets(total)[length:]
        mask = (jnp.arange(total) <= jnp.arange(length, total)[:, None])[None, None]
        cross_mask = key_mask(self.encoded.cross_mask)
        row = jnp.arange(rows)[:, None]

        def apply(block: Any, x: jax.Array, bias: jax.Array, memory: tuple[jax.Array, ...]) -> Any:
            *kept, cross_keys, cross_values = memory
            room = ((0, 0), (0, 0), (0, more), (0, 0), (0, 0))
            own = [jnp.pad(side[self.slots, row], room) for side in kept]
            # Mapping over the beams alone leaves the keys and values of the encoded input one for all of them.
            x, written = jax.vmap(
                lambda x, keys, values: block.step(
                    x, (keys, values), (cross_keys, cross_values), length, bias, mask, cross_mask
                )
            )(x, *own)
            return x, tuple(side[:, :, length:] for side in written)

        hidden, new = model.decoder.scan(
            model.embed(ids.swapaxes(0, 1)),
            apply,
            lambda table: jnp.moveaxis(table.astype(jnp.float32)[buckets], 2, 0)[None],
            (self.keys, self.values, self.encoded.cross_keys, self.encoded.cross_values),
        )
        hidden = model.decoder.final_norm(hidden).swapaxes(0, 1)

        def with_new(old: jax.Array, new: jax.Array) -> jax.Array:
            layers, _, _, _, *head = new.shape
            return jnp.concatenate([old, new.swapaxes(2, 3).reshape(layers, beams * more, rows, *head)], axis=1)

        here = self.keys.shape[1] + jnp.arange(beams * more, dtype=jnp.int32).reshape(beams, 1, more)
        slots = jnp.concatenate([self.slots, jnp.broadcast_to(here, (beams, rows, more))], axis=2)
        return hidden, T5Beams(with_new(self.keys, new[0]), with_new(self.values, new[1]), slots, self.encoded)
