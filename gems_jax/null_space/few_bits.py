"""Constrained kernels of fewer bits than float32: what is stored of an update leaves the null space.

An update is in float32 and inside. Added to a bfloat16 kernel, of 8 significant bits, it is rounded entry by entry: the
change that stays is outside in part, and nothing at all where it is less than half a unit in the last place.
"""

import warnings

import jax.numpy as jnp

from gems_jax.leaf_path import named_leaves
from gems_jax.null_space.space import NullSpace
from gems_jax.types import PyTree


class FewBitsWarning(UserWarning):
    """Of `warn_of_few_bits`."""


def warn_of_few_bits(params: PyTree, null_space: NullSpace) -> None:
    """Warns where kernels that a null space constrains have fewer bits than float32.

    Args:
      params: that the updates are added to, arrays or their shapes; traced ones, too.
      null_space: see `NullSpace`.
    """
    few = [
        (path, leaf.dtype)
        for path, leaf in named_leaves(params)
        if path in null_space.inputs and jnp.issubdtype(leaf.dtype, jnp.floating) and jnp.finfo(leaf.dtype).bits < 32
    ]
    if few:
        path, dtype = few[0]
        more = f" and {len(few) - 1} more kernels are" if len(few) > 1 else " is"
        warnings.warn(
            f"{path!r}{more} {dtype}: each update is inside the null space, but the rounding of what is stored leads "
            "out of it, and small updates are lost; keep float32 parameters and cast them in the loss "
            "(docs/optimiser.md, bfloat16), or measure gems_jax.null_space_leak of the change of the parameters",
            FewBitsWarning,
            stacklevel=4,
        )
