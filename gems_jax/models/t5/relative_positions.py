"""Relative positions of T5: which learned bias a query's score of a key gets."""

import math

import jax
import jax.numpy as jnp
import numpy as np


def position_buckets(queries: int, keys: int, bidirectional: bool, buckets: int, max_distance: int) -> np.ndarray:
    """Bucket of the distance between each query and key: exact when near, logarithmic when far.

    Half of the buckets hold one distance each, the other half grow geometrically up to ``max_distance``, beyond
    which all distances share the last one; with ``bidirectional`` each sign has half of all (arXiv 1910.10683,
    section 2.1).

    Returns:
      int32 ``[queries, keys]``, fixed while tracing.

    Example:
      >>> position_buckets(1, 5, bidirectional=True, buckets=8, max_distance=16).tolist()
      [[0, 5, 6, 6, 6]]
    """
    distance = np.arange(keys)[None, :] - np.arange(queries)[:, None]
    sign_offset = np.zeros_like(distance)
    if bidirectional:
        buckets //= 2
        sign_offset = np.where(distance > 0, buckets, 0)
        distance = np.abs(distance)
    else:
        distance = np.maximum(-distance, 0)
    exact = buckets // 2
    ratio = np.maximum(distance, exact).astype(np.float32) / np.float32(exact)
    growth = np.log(ratio) / np.float32(math.log(max_distance / exact)) * np.float32(buckets - exact)
    far = np.minimum(exact + growth.astype(np.int32), buckets - 1)
    return (sign_offset + np.where(distance < exact, distance, far)).astype(np.int32)


def position_bias(table: jax.Array, buckets: np.ndarray) -> jax.Array:
    """Learned bias of every query and key position.

    Args:
      table: ``[buckets, heads]``.
      buckets: int ``[queries, keys]`` from `position_buckets`.

    Returns:
      float32 ``[1, heads, queries, keys]``.
    """
    # A product with one-hot rows, since the transpose of a lookup is a scatter, slow on CPU and TPU.
    chosen = (buckets[..., None] == jnp.arange(table.shape[0])).astype(jnp.float32)
    wide = table.astype(jnp.float32)
    return jnp.einsum("qkn,nh->hqk", chosen, wide, precision=jax.lax.Precision.HIGHEST)[None]
