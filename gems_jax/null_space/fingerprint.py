"""A fingerprint of weights, to tell whether something was made from these."""

import hashlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from gems_jax.leaf_path import named_leaves
from gems_jax.types import PyTree


def weights_fingerprint(params: PyTree, paths: Mapping[str, Any] | None = None) -> str:
    """SHA-256 over a fixed sample of the entries of named kernels, as bfloat16.

    The sample is at most 4,096 evenly spaced entries a leaf, so that it costs nothing on a sharded model and
    the same weights have the same fingerprint in float32 and bfloat16.

    Args:
      params: tree of arrays.
      paths: the leaves to include (keys), or ``None`` for all.

    Returns:
      64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for path, leaf in sorted(named_leaves(params), key=lambda entry: entry[0]):
        if paths is not None and path not in paths:
            continue
        step = max(1, leaf.size // 4096)
        sample = jnp.ravel(jnp.asarray(leaf))[::step].astype(jnp.bfloat16)
        digest.update(f"{path} {tuple(leaf.shape)}".encode())
        digest.update(np.asarray(sample).tobytes())
    return digest.hexdigest()
