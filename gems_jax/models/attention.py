"""Attention with a learned bias of positions: which of its implementations runs where.

cuDNN's flash kernels are not among them: they take such a bias only as a whole ``[B, heads, T, S]``, whose memory is
what they save, and under ``vmap``, as over tasks, jax (0.10) sums the bias's gradient over the mapped axis.
"""

import jax
import jax.numpy as jnp

# Score of keys that may not be attended to; finite, so that a row without any key gives no NaN.
MASKED = -1e9
PATHS = ("einsum", "xla")


def attention_path(backend: str) -> str:
    """The fastest of ``PATHS`` for a ``jax.default_backend()``.

    ``"xla"`` is ``jax.nn.dot_product_attention``. ``"einsum"``, with the heads made a batch axis first, is faster on
    CPU: a gradient of a small T5 takes 0.8 times as long.

    Example:
      >>> attention_path("cpu"), attention_path("tpu")
      ('einsum', 'xla')
    """
    return "einsum" if backend == "cpu" else "xla"


def attend(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    bias: jax.Array | None = None,
    mask: jax.Array | None = None,
    *,
    scale: float = 1.0,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
    path: str | None = None,
) -> jax.Array:
    """Attention, ``softmax(scale Q K^T + bias) V`` with the masked scores left out (arXiv 1706.03762, section 3.2).

    The softmax is computed in float32. A row without any key that may be attended to gives a finite mean of values.

    Args:
      queries: ``[B, T, heads, d]``.
      keys, values: ``[B, S, heads, d]``, the queries' dtype.
      bias: float32, broadcastable to ``[B, heads, T, S]``.
      mask: bool, broadcastable to ``[B, heads, T, S]``, True where a key may be attended to.
      scale: of the scores.
      dropout_rate: of the attention weights, if there is a ``dropout_key``.
      dropout_key: PRNG key; ``None``: no dropout.
      path: one of ``PATHS``; ``None``: that of the default backend. With dropout it is always ``"einsum"``.

    Returns:
      ``[B, T, heads, d]``.

    Raises:
      ValueError: if ``path`` is unknown.

    Example:
      >>> x = jnp.ones((1, 2, 1, 4))
      >>> attend(x, x, x, mask=jnp.tri(2, dtype=bool)[None, None]).shape
      (1, 2, 1, 4)
    """
    dropping = dropout_key is not None and dropout_rate > 0
    path = attention_path(jax.default_backend()) if path is None else path
    if path not in PATHS:
        raise ValueError(f"path must be one of {PATHS}, got {path!r}")
    if path == "einsum" or dropping:
        return _einsum(queries, keys, values, bias, mask, scale, dropout_rate, dropout_key)
    return jax.nn.dot_product_attention(queries, keys, values, bias, mask, scale=scale, implementation="xla")


def _einsum(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    bias: jax.Array | None,
    mask: jax.Array | None,
    scale: float,
    dropout_rate: float,
    dropout_key: jax.Array | None,
) -> jax.Array:
    # Heads are made a leading axis once; einsums over [B, S, heads, d] took 1.15 to 1.5 times as long on CPU.
    queries, keys, values = (x.swapaxes(1, 2) for x in (queries, keys, values))
    scores = jnp.einsum("bhqd,bhkd->bhqk", queries, keys, preferred_element_type=jnp.float32)
    scores = scores if scale == 1 else scores * scale
    scores = scores if bias is None else scores + bias
    scores = scores if mask is None else jnp.where(mask, scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(values.dtype)
    weights = dropout(weights, dropout_rate, dropout_key)
    return jnp.einsum("bhqk,bhkd->bhqd", weights, values).swapaxes(1, 2)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """``x`` with a share ``rate`` of its entries 0 and the others scaled by ``1 / (1 - rate)``; no key: ``x``."""
    if key is None or rate == 0:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)
