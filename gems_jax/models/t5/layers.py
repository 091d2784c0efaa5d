"""Parts of T5's blocks: kernels stacked over the layers, norms, feed-forward layer and attention."""

import jax
from flax import nnx

from gems_jax.models.attention import attend, dropout
from gems_jax.models.layers import Linear
from gems_jax.models.t5.config import T5Config


def site_key(key: jax.Array | None, site: int) -> jax.Array | None:
    """Key of one of a layer's sites, where dropout is applied."""
    return None if key is None else jax.random.fold_in(key, site)


class T5Attention(nnx.Module):
    """Multi-head attention without biases and, as in T5, without dividing the scores by ``sqrt(d_kv)``."""

    def __init__(self, layers: int, config: T5Config, key: jax.Array):
        width, inner = config.d_model, config.num_heads * config.d_kv
        q, k, v, o = jax.random.split(key, 4)
        self.config = config
        self.q = Linear((layers, width, inner), (width * config.d_kv) ** -0.5, config, q)
        self.k = Linear((layers, width, inner), width**-0.5, config, k)
        self.v = Linear((layers, width, inner), width**-0.5, config, v)
        self.o = Linear((layers, inner, width), inner**-0.5, config, o)

    def _heads(self, x: jax.Array, batch: int) -> jax.Array:
        return x.reshape(batch, -1, self.config.num_heads, self.config.d_kv)

    def keys_values(self, keys: jax.Array, batch: int) -> tuple[jax.Array, jax.Array]:
        """Keys and values ``[B, S, heads, d_kv]`` of the tokens of ``batch`` rows, ``[B * S, width]``."""
        return self._heads(self.k(keys), batch), self._heads(self.v(keys), batch)

    def __call__(
        self,
        queries: jax.Array,
        keys_values: tuple[jax.Array, jax.Array],
        bias: jax.Array | None,
        mask: jax.Array | None,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """Attends from ``queries`` ``[B * T, width]`` to keys and values; returns ``[B * T, width]``."""
        keys, values = keys_values
        rate = self.config.dropout_rate
        q = self._heads(self.q(queries), len(keys))
        mixed = attend(q, keys, values, bias, mask, dropout_rate=rate, dropout_key=dropout_key)
        return self.o(mixed.reshape(queries.shape[0], -1))


class T5MLP(nnx.Module):
    """``(gelu(x W_0) * x W_1) W_o`` (T5 1.1) or ``relu(x W) W_o`` (T5)."""

    def __init__(self, layers: int, config: T5Config, key: jax.Array):
        width, hidden = config.d_model, config.d_ff
        first, second, out = jax.random.split(key, 3)
        self.config = config
        if config.feed_forward == "gated-gelu":
            self.wi_0 = Linear((layers, width, hidden), width**-0.5, config, first)
            self.wi_1 = Linear((layers, width, hidden), width**-0.5, config, second)
        else:
            self.wi = Linear((layers, width, hidden), width**-0.5, config, first)
        self.wo = Linear((layers, hidden, width), hidden**-0.5, config, out)

    def __call__(self, x: jax.Array, dropout_key: jax.Array | None = None) -> jax.Array:
        if self.config.feed_forward == "gated-gelu":
            hidden = jax.nn.gelu(self.wi_0(x), approximate=True) * self.wi_1(x)
        else:
            hidden = jax.nn.relu(self.wi(x))
        return self.wo(dropout(hidden, self.config.dropout_rate, dropout_key))
