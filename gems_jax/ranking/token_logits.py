"""Logits of the next token as the output layer's tables give them: one array a table, which are never joined."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp


class TokenLogits(NamedTuple):
    """Logits of the next token of several beams, by table of the output layer.

    A search reads a few columns and the normaliser. Joining the tables first would copy all of them.

    Args:
      parts: float32 ``[n, columns]`` of each table.
      first: token that the first column of each part stands for, ascending.

    Example:
      >>> logits = TokenLogits((jnp.zeros((1, 2)), jnp.array([[1.0, 2.0]])), (0, 7))
      >>> logits.at(jnp.array([0, 0]), jnp.array([1, 8])).tolist()
      [0.0, 2.0]
      >>> round(float(logits.log_normaliser()[0]), 4)  # log(1 + 1 + e + e^2)
      2.4938
    """

    parts: tuple[jax.Array, ...]
    first: tuple[int, ...]

    def log_normaliser(self) -> jax.Array:
        """``log sum_t exp(logit_t)`` over the tokens of all parts, float32 ``[n]``."""
        return functools.reduce(jnp.logaddexp, [jax.nn.logsumexp(part, axis=-1) for part in self.parts])

    def at(self, beams: jax.Array, tokens: jax.Array | int) -> jax.Array:
        """Logits of tokens in beams, of shapes that broadcast; of no meaning for tokens that no part has."""
        logits = None
        for part, first in zip(self.parts, self.first, strict=True):
            here = part.at[beams, tokens - first].get(mode="clip", wrap_negative_indices=False)
            logits = here if logits is None else jnp.where(tokens >= first, here, logits)
        assert logits is not None
        return logits
