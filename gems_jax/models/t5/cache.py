"""What T5's decoder keeps from one generated token to the next."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


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
