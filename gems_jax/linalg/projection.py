"""Projection of matrices and leaves into a null space."""

import math

import jax
import jax.numpy as jnp

from gems_jax.linalg.matrix_dims import MatrixSpec
from gems_jax.linalg.subspace import Frame


def kept_side_first(x: jax.Array, side: str) -> jax.Array:
    """``[..., in, out]`` as is for side ``in``, transposed for side ``out``."""
    return x if side == "in" else jnp.swapaxes(x, -1, -2)


def project_update(update: jax.Array, spec: MatrixSpec, frame: Frame, side: str) -> jax.Array:
    """``N dW`` (or ``dW N``) for a leaf, in float32 (float64 stays), highest precision, applied twice.

    Args:
      update: ``[*shape]``.
      spec: its matrix role.
      frame: factor ``[d, c]`` for all of a stack, or ``[*batch, d, c]``.
      side: ``"in"`` or ``"out"``.

    Returns:
      ``[*shape]``.
    """
    update = update.astype(jnp.promote_types(update.dtype, jnp.float32))
    matrices = kept_side_first(spec.to_matrices(update), side)
    return spec.from_matrices(kept_side_first(project_stack(matrices, frame), side))


def project_stack(matrices: jax.Array, frame: Frame) -> jax.Array:
    """``N x`` for a stack ``[batch, d, n]`` with one factor ``[d, c]`` or one each."""
    return stacked(frame).project(matrices)


def stacked(frame: Frame) -> Frame:
    """With the factors of a stack ``[*batch, d, c]`` as ``[batch, d, c]``, of a single kernel as ``[1, d, c]``."""
    if frame.factor is None:
        return frame
    # The number of them, not -1: factors may have no columns.
    shape = frame.factor.shape
    return frame._replace(factor=frame.factor.reshape(math.prod(shape[:-2]), *shape[-2:]))
