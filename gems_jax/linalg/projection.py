"""Projection of matrices and leaves into a null space."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gems_jax.linalg.matrix_dims import MatrixSpec
from gems_jax.linalg.orthonormal import project_onto_span
from gems_jax.linalg.stacks import by_member, placed_like, split_columns, whole, whole_columns


class Projector(NamedTuple):
    """A null space: everything (``factor is None``), or given by one thin factor.

    Attributes:
      factor: ``[..., p, c]`` orthonormal columns, zero columns as padding, or ``None``.
      complement: whether ``factor`` spans the null space (``Q``) or the protected directions (``K``).
    """

    factor: jax.Array | None
    complement: bool

    def project(self, x: jax.Array) -> jax.Array:
        """``N x``, twice, so that float32 rounding of the first pass is removed as well. ``x: [..., p, n]``."""
        if self.factor is None:
            return x
        if self.factor.shape[-1] == 0:  # no protected direction, or no other
            return jnp.zeros_like(x) if self.complement else x

        def twice(factor: jax.Array, x: jax.Array) -> jax.Array:
            # On a mesh: of a kernel that is wider than high the factor travels, otherwise what comes of its columns.
            is_wide = x.shape[-2] < x.shape[-1]
            projector = Projector(whole(factor) if is_wide else whole_columns(factor), self.complement)
            x = split_columns(x) if is_wide else x
            return projector.project_once(projector.project_once(x))

        return placed_like(x, by_member(twice, self.factor, x))

    def project_once(self, x: jax.Array) -> jax.Array:
        """``N x``, once."""
        if self.factor is None:
            return x
        inside = project_onto_span(self.factor.astype(x.dtype), x)
        return inside if self.complement else x - inside


def projected_axis_first(x: jax.Array, side: str) -> jax.Array:
    """``[..., in, out]`` as is for side ``in``, transposed for side ``out``."""
    return x if side == "in" else jnp.swapaxes(x, -1, -2)


def project_update(update: jax.Array, spec: MatrixSpec, projector: Projector, side: str) -> jax.Array:
    """``N dW`` (or ``dW N``) for a leaf, in float32 (float64 stays), highest precision, applied twice.

    Args:
      update: ``[*shape]``.
      spec: its matrix role.
      projector: factor ``[d, c]`` for all of a stack, or ``[*batch, d, c]``.
      side: ``"in"`` or ``"out"``.

    Returns:
      ``[*shape]``.
    """
    update = update.astype(jnp.promote_types(update.dtype, jnp.float32))
    matrices = projected_axis_first(spec.to_matrices(update), side)
    return spec.from_matrices(projected_axis_first(project_stack(matrices, projector), side))


def project_stack(matrices: jax.Array, projector: Projector) -> jax.Array:
    """``N x`` for a stack ``[batch, d, n]`` with one factor ``[d, c]`` or one each."""
    return stacked(projector).project(matrices)


def stacked(projector: Projector) -> Projector:
    """With the factors of a stack ``[*batch, d, c]`` as ``[batch, d, c]``, of a single kernel as ``[1, d, c]``."""
    if projector.factor is None:
        return projector
    # The number of them, not -1: factors may have no columns.
    shape = projector.factor.shape
    return projector._replace(factor=projector.factor.reshape(math.prod(shape[:-2]), *shape[-2:]))
