"""SASRec: the next item from the items before it, by causal self-attention (Kang and McAuley, arXiv 1808.09781).

With cross-entropy over the whole catalogue in place of one sampled negative. Norms stand before the layers and behind
the last one, as in later transformers.
"""

import jax
import jax.numpy as jnp
from flax import nnx

# Added to the logits of places that may not be looked at; finite, so that a place without any stays a number.
_HIDDEN = -1e9


class Block(nnx.Module):
    """Self-attention and two layers with a rectifier between them, each with a norm before and a sum behind.

    Args:
      width: of the states.
      heads: that divide it.
      rngs: of the weights.
    """

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs):
        self.heads = heads
        self.norm, self.inner_norm = (nnx.LayerNorm(width, rngs=rngs) for _ in range(2))
        self.query, self.key, self.value, self.out, self.up, self.down = (
            nnx.Linear(width, width, rngs=rngs) for _ in range(6)
        )

    def __call__(self, x: jax.Array, visible: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
        first, second, third = (None,) * 3 if key is None else jax.random.split(key, 3)
        normed = self.norm(x)
        split = lambda y: y.reshape(*y.shape[:-1], self.heads, -1)  # noqa: E731
        query, keys, value = (split(layer(normed)) for layer in (self.query, self.key, self.value))
        logits = jnp.einsum("bqhd,bkhd->bhqk", query, keys) / jnp.sqrt(query.shape[-1])
        weights = dropout(jax.nn.softmax(jnp.where(visible[:, None], logits, _HIDDEN)), rate, first)
        x = x + dropout(self.out(jnp.einsum("bhqk,bkhd->bqhd", weights, value).reshape(x.shape)), rate, second)
        return x + dropout(self.down(jax.nn.relu(self.up(self.inner_norm(x)))), rate, third)


class SasRec(nnx.Module):
    """States of item sequences, and scores of all items by them.

    Args:
      num_items: N.
      width: d.
      layers: number of blocks.
      heads: attention heads of each.
      max_length: places that have a learnt position.
      rngs: of the weights.

    Example:
      >>> import numpy as np
      >>> model = SasRec(5, width=8, layers=1, heads=2, max_length=4, rngs=nnx.Rngs(0))
      >>> model.scores(np.array([[-1, 3, 0]])).shape
      (1, 3, 5)
    """

    def __init__(self, num_items: int, width: int, layers: int, heads: int, max_length: int, rngs: nnx.Rngs):
        normal = lambda *shape: nnx.Param(0.02 * jax.random.normal(rngs.params(), shape))  # noqa: E731
        self.items, self.positions = normal(num_items, width), normal(max_length, width)
        self.blocks = nnx.List([Block(width, heads, rngs) for _ in range(layers)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)

    def states(self, sequences: jax.Array, rate: float = 0.0, key: jax.Array | None = None) -> jax.Array:
        """What is known at each place: a state looks at its own item and those before it.

        Args:
          sequences: item numbers int ``[B, L]``, oldest first, -1 before the first; the last place has the last
            position, whatever L.
          rate: dropout rate.
          key: of the dropout; ``None``: none.

        Returns:
          float32 ``[B, L, d]``.
        """
        length = sequences.shape[1]
        real = sequences >= 0
        x = self.items[jnp.maximum(sequences, 0)] * jnp.sqrt(self.items.shape[1])
        x = (x + self.positions[self.positions.shape[0] - length :]) * real[..., None]
        visible = jnp.tril(jnp.ones((length, length), bool)) & real[:, None, :]
        keys = [None] * (1 + len(self.blocks)) if key is None else list(jax.random.split(key, 1 + len(self.blocks)))
        x = dropout(x, rate, keys[0])
        for block, its_key in zip(self.blocks, keys[1:], strict=True):
            x = block(x, visible, rate, its_key)
        return self.norm(x)

    def scores(self, sequences: jax.Array) -> jax.Array:
        """Logits of all items at each place, float32 ``[B, L, N]``, from sequences as of `states`."""
        return self.states(sequences) @ self.items.T


def cross_entropy(
    model: SasRec, sequences: jax.Array, targets: jax.Array, rate: float = 0.0, key: jax.Array | None = None
) -> jax.Array:
    """``-log softmax(s)[target]`` over all N items, its mean over the places that have a target.

    Args:
      model: with N items.
      sequences: int ``[B, L]``, as of `SasRec.states`.
      targets: item numbers int ``[B, L]``, the next at each place; -1: the place does not count.
      rate, key: of the dropout.

    Returns:
      float32 scalar, 0 where no place counts.
    """
    logits = model.states(sequences, rate, key) @ model.items.T
    counted = targets >= 0
    right = jnp.take_along_axis(logits, jnp.maximum(targets, 0)[..., None], axis=-1)[..., 0]
    losses = jnp.where(counted, jax.nn.logsumexp(logits, axis=-1) - right, 0.0)
    return losses.sum() / jnp.maximum(counted.sum(), 1)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Each number is 0 with probability ``rate`` and else divided by ``1 - rate``; without a key it stays."""
    if key is None or rate == 0:
        return x
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0.0)
