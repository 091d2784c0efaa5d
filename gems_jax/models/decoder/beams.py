"""A decoder for several beams a prompt, which share the prompt's keys and values."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gems_jax.models.decoder.cache import DecoderCache


class DecoderBeams(NamedTuple):
    """The state that a search keeps from one token to the next: see `T5Beams`.

    Args:
      keys, values: ``[layers, B, slots, kv_heads, head_dim]`` of all tokens behind the prompt that any beam has read.
      slots: int32 ``[B, beams, length]``, the slots of a beam's tokens.
      prompt: keys and values of the prompts, one for all beams.
    """

    keys: jax.Array
    values: jax.Array
    slots: jax.Array
    prompt: DecoderCache

    @classmethod
    def start(cls, model: Any, inputs: Mapping[str, jax.Array]) -> tuple[jax.Array, "DecoderBeams"]:
        """Reads prompts; one beam each.

        Args:
          model: a `Decoder`.
          inputs: ``"input_ids"`` and ``"attention_mask"``, ``[B, S]``, padded on either side.

        Returns:
          Logits of the token after each prompt, float32 ``[B, V + N]``, and the beams.
        """
        logits, prompt = model.start(inputs, 0)
        nothing = prompt.keys[:, :, :0]
        return logits, cls(nothing, nothing, jnp.zeros((len(logits), 1, 0), jnp.int32), prompt)

    def take(self, parents: jax.Array) -> "DecoderBeams":
        """The beams int ``[B, n]`` of each row, in their order; a beam may be taken more than once."""
        return self._replace(slots=jnp.take_along_axis(self.slots, parents[..., None], axis=1))

    def step(self, model: Any, ids: jax.Array) -> tuple[jax.Array, "DecoderBeams"]:
        """More tokens of each beam, in one pass.

        Args:
          model: a `Decoder`.
          ids: int ``[B, n, T]``.

        Returns:
          ``[B, n, T, d_model]`` after the final norm, and the beams with these tokens.
        """
        prompt, more = self.prompt, ids.shape[2]
        rows, beams, length = self.slots.shape
        row = jnp.arange(rows)[:, None, None]
        new_slots = length + jnp.arange(more)
        own_slots = jnp.arange(length + more)
        positions = prompt.next_position[:, None] + new_slots

        def own(kept: jax.Array, new: jax.Array) -> jax.Array:
            """A layer's keys or values of the beams' tokens so far, then the new ones': ``[B, n, length + T, ...]``."""
            return jnp.concatenate([kept[row, self.slots], new], axis=2) if length else new

        def attend(
            q: jax.Array, k: jax.Array, v: jax.Array, window: int | jax.Array | None, kept: tuple[jax.Array, ...]
        ) -> jax.Array:
            prompt_keys, prompt_values, keys, values = kept
            prompt_mask, own_mask = (prompt.positions >= 0)[:, None], own_slots <= new_slots[:, None]
            if window is not None:
                prompt_mask &= prompt.positions[:, None] > (positions - window)[:, :, None]
                own_mask &= own_slots > (new_slots - window)[:, None]
            q, k, v = (x.reshape(rows, beams, more, *x.shape[2:]) for x in (q, k, v))
            mixed = shared_attention(
                q, (prompt_keys, prompt_values, prompt_mask), (own(keys, k), own(values, v), own_mask)
            )
            return mixed.reshape(rows, beams * more, *mixed.shape[3:])

        kept = prompt.keys, prompt.values, self.keys, self.values
        every = jnp.broadcast_to(positions[:, None], ids.shape).reshape(rows, beams * more)
        hidden, new = model._layers(ids.reshape(rows, beams * more), every, attend, kept, keep=True)
        keys, values = (jnp.concatenate(sides, axis=2) for sides in zip((self.keys, self.values), new, strict=True))
        here = self.keys.shape[2] + jnp.arange(beams * more, dtype=jnp.int32).reshape(beams, more)
        slots = jnp.concatenate([self.slots, jnp.broadcast_to(here, ids.shape)], axis=2)
        return hidden.reshape(*ids.shape, -1), DecoderBeams(keys, values, slots, prompt)


def shared_attention(
    q: jax.Array,
    shared: tuple[jax.Array, jax.Array, jax.Array],
    own: tuple[jax.Array, jax.Array, jax.Array],
) -> jax.Array:
    """``softmax(q k^T / sqrt(head_dim)) v`` over keys that all beams of a row share, and those of each beam.

    The softmax is computed in float32.

    Args:
      q: ``[B, n, T, heads, head_dim]``, T queries a beam.
      shared: keys and values ``[B, S, kv_heads, head_dim]`` and which a query may attend to, bool ``[B, 1 or T, S]``.
      own: keys and values ``[B, n, K, kv_heads, head_dim]`` and which a query may attend to, bool ``[T, K]``, at least
        one each.

    Returns:
      ``[B, n, T, heads, head_dim]``.

    Example:
      >>> q, mask = jnp.ones((1, 3, 1, 4, 8)), jnp.ones((1, 2), bool)
      >>> shared, own = jnp.ones((1, 2, 2, 8)), jnp.ones((1, 3, 2, 2, 8))
      >>> shared_attention(q, (shared, shared, mask[None]), (own, own, mask)).shape
      (1, 3, 1, 4, 8)
    """
    (shared_keys, shared_values, shared_mask), (own_keys, own_values, own_mask) = shared, own
    heads, width = q.shape[3:]
    grouped = q.reshape(*q.shape[:3], shared_keys.shape[2], -1, width)
    # Scores of [B, n, T, kv_heads, heads a kv_head, keys].
    scores = jnp.concatenate(
        [
            jnp.where(
                shared_mask[:, None, :, None, None],
                jnp.einsum("bntkgd,bskd->bntkgs", grouped, shared_keys, preferred_element_type=jnp.float32),
                -jnp.inf,
            ),
            jnp.where(
                own_mask[:, None, None],
                jnp.einsum("bntkgd,bnukd->bntkgu", grouped, own_keys, preferred_element_type=jnp.float32),
                -jnp.inf,
            ),
        ],
        axis=-1,
    )
    weights = jax.nn.softmax(scores * width**-0.5, axis=-1).astype(q.dtype)
    split = shared_keys.shape[1]
    mixed = jnp.einsum("bntkgs,bskd->bntkgd", weights[..., :split], shared_values)
    mixed += jnp.einsum("bntkgu,bnukd->bntkgd", weights[..., split:], own_values)
    return mixed.reshape(*q.shape[:3], heads, width)
