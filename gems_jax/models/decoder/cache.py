"""Keys and values of the tokens seen so far, so that the next token costs one token."""

import dataclasses

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecoderCache:
    """The keys and values that a decoder keeps of a batch of texts, in arrays of fixed shape.

    Args:
      keys, values: ``[L, B, M, kv_heads, head_dim]``, room for M tokens a row; keys are rotated.
      positions: int32 ``[B, M]``, the position of each token, -1 where there is none (padding, or not yet).
      next_position: int32 ``[B]``, of the token to come.
      used: int32, how many of the M slots are taken.
    """

    keys: jax.Array
    values: jax.Array
    positions: jax.Array
    next_position: jax.Array
    used: jax.Array

    @classmethod
    def of_prompt(cls, keys: jax.Array, values: jax.Array, positions: jax.Array, room: int) -> "DecoderCache":
        """A cache of prompts, with slots for ``room`` further tokens.

        Args:
          keys, values: ``[L, B, S, kv_heads, head_dim]``.
          positions: int ``[B, S]``, -1 for padding.
          room: number of tokens that may follow.

        Example:
          >>> keys = jnp.zeros((2, 1, 3, 1, 4))
          >>> cache = DecoderCache.of_prompt(keys, keys, jnp.array([[-1, 0, 1]]), room=2)
          >>> cache.positions.tolist(), cache.next_position.tolist(), cache.keys.shape
          ([[-1, 0, 1, -1, -1]], [2], (2, 1, 5, 1, 4))
        """
        longer = ((0, 0), (0, 0), (0, room), (0, 0), (0, 0))
        return cls(
            keys=jnp.pad(keys, longer),
            values=jnp.pad(values, longer),
            positions=jnp.pad(positions.astype(jnp.int32), ((0, 0), (0, room)), constant_values=-1),
            next_position=positions.max(axis=1).astype(jnp.int32) + 1,
            used=jnp.int32(positions.shape[1]),
        )

    def take(self, rows: jax.Array) -> "DecoderCache":
        """The cache of some of the rows, in their order; a row may be taken more than once.

        Args:
          rows: int ``[B']``.
        """
        return dataclasses.replace(
            self,
            keys=jnp.take(self.keys, rows, axis=1),
            values=jnp.take(self.values, rows, axis=1),
            positions=jnp.take(self.positions, rows, axis=0),
            next_position=jnp.take(self.next_position, rows, axis=0),
        )

    def announce(self, count: int) -> "DecoderCache":
        """The cache with positions for ``count`` new tokens a row, whose keys and values are still to come."""
        new = self.next_position[:, None] + jnp.arange(count, dtype=jnp.int32)
        return dataclasses.replace(
            self,
            positions=jax.lax.dynamic_update_slice(self.positions, new, (0, self.used)),
            next_position=self.next_position + count,
        )

    def add(self, keys: jax.Array, values: jax.Array) -> "DecoderCache":
        """The cache with the keys and values ``[L, B, n, kv_heads, head_dim]`` of the tokens announced."""
        at = (0, 0, self.used, 0, 0)
        return dataclasses.replace(
            self,
            keys=jax.lax.dynamic_update_slice(self.keys, keys, at),
            values=jax.lax.dynamic_update_slice(self.values, values, at),
            used=self.used + keys.shape[2],
        )
