"""Adding updates to parameters of fewer bits."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from gems_jax.types import PyTree


def round_stochastically(x: jax.Array, key: jax.Array) -> jax.Array:
    """float32 to bfloat16, up or down at random so that the expectation is ``x``.

    ``P(up) = (x - down) / (up - down)`` (arXiv 2010.06192): an update smaller than half a unit in the last place,
    which rounding to nearest would lose at every step, then moves the weight in a share of them.

    Args:
      x: float32 ``[...]``.
      key: PRNG key.

    Returns:
      bfloat16 ``[...]``; what is not finite stays so.

    Example:
      >>> rounded = round_stochastically(jnp.full(1000, 1.001), jax.random.key(0))
      >>> sorted(set(rounded.tolist()))
      [1.0, 1.0078125]
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    # The upper 16 bits of a float32 are a bfloat16; a carry from the lower ones is the next one away from 0.
    rounded = jax.lax.bitcast_convert_type(((bits + noise) >> 16).astype(jnp.uint16), jnp.bfloat16)
    return jnp.where(jnp.isfinite(x), rounded, x.astype(jnp.bfloat16))


def apply_updates(params: PyTree, updates: PyTree, key: jax.Array | None) -> PyTree:
    """``params + updates``, added in float32.

    Args:
      params: tree of arrays.
      updates: the same tree.
      key: PRNG key: bfloat16 leaves are rounded stochastically; ``None``: all to the nearest.

    Returns:
      New parameters of the same dtypes.
    """
    if key is None:
        return optax.apply_updates(params, updates)
    tree: Any
    leaves, tree = jax.tree.flatten(params)

    def add(number: int, leaf: jax.Array, update: jax.Array) -> jax.Array:
        if leaf.dtype != jnp.bfloat16:
            return optax.apply_updates(leaf, update)
        wide = leaf.astype(jnp.float32) + update.astype(jnp.float32)
        return round_stochastically(wide, jax.random.fold_in(key, number))

    return tree.unflatten(
        [add(i, *pair) for i, pair in enumerate(zip(leaves, tree.flatten_up_to(updates), strict=True))]
    )
