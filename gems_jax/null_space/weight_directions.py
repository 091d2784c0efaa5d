"""Principal directions of the weights themselves: what a model knows, read off its kernels alone."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gems_jax.first_few import first_few
from gems_jax.leaf_path import named_leaves
from gems_jax.linalg.matrix_dims import (
    MatrixDims,
    MatrixRule,
    MatrixSpec,
    is_guess,
    is_named_like_no_kernel,
    matrix_specs,
    stacked_matrix_dims,
)
from gems_jax.null_space.directions import Directions, Factor, Rule, stack_directions
from gems_jax.types import PyTree


class WeightDirections(NamedTuple):
    """What the weights of a tree show.

    Attributes:
      factors: of each kernel by path, and there by side: left singular vectors ``in``, right ones ``out``.
      roles: those of the kernels; ``None`` for tables and heads.
      left_out: leaves of two or more axes that are no kernels: why, by path.
    """

    factors: dict[str, dict[str, Factor]]
    roles: dict[str, MatrixDims | None]
    left_out: dict[str, str]


def singular_directions(path: str, matrix: np.ndarray, rule: Rule) -> dict[str, Directions]:
    """Leading singular vectors of one kernel, by ``svd`` in float64.

    ``W = U S V^T``, the first ``k`` columns of ``U`` for the side ``in``, of ``V`` for ``out``; a singular value's
    energy is its square, its dimension the smaller side.

    Args:
      path: of the kernel, for errors.
      matrix: ``[in, out]``.
      rule: how many.

    Returns:
      `Directions` by side, the same number on both.

    Raises:
      ValueError: the matrix is not finite.

    Example:
      >>> sides = singular_directions("w", np.array([[0.0, 3.0, 0.0], [1.0, 0.0, 0.0]]), Rule(energy=0.9))
      >>> sides["in"].residual, {side: np.abs(one.basis).ravel().tolist() for side, one in sides.items()}
      (0.1, {'in': [1.0, 0.0], 'out': [0.0, 1.0, 0.0]})
    """
    if not np.all(np.isfinite(matrix)):
        raise ValueError(f"the weights of {path!r} are not finite; nothing can be read off them")
    left, values, right = np.linalg.svd(np.asarray(matrix, np.float64), full_matrices=False)
    energies = values**2
    total = float(energies.sum())
    kept = rule.kept(energies, total, len(values))
    residual = float(energies[kept:].sum() / total) if total > 0 else 1.0
    dtype = jax.dtypes.canonicalize_dtype(np.float64)
    bases = {"in": left[:, :kept], "out": right[:kept].T}
    return {side: Directions(basis.astype(dtype), False, kept, residual) for side, basis in bases.items()}


def weight_directions(params: PyTree, rule: Rule, matrix_dims: MatrixRule | None) -> WeightDirections:
    """The leading singular vectors of all kernels of a tree, one matrix at a time.

    Args:
      params: tree of arrays.
      rule: how many of each matrix.
      matrix_dims: which leaves are kernels; ``None``: `stacked_matrix_dims`.

    Raises:
      ValueError: no kernels, or weights that are not finite.
    """
    matrix_dims = matrix_dims or stacked_matrix_dims
    found = WeightDirections({}, {}, {})
    for (path, leaf), spec in zip(named_leaves(params), matrix_specs(params, matrix_dims), strict=True):
        if spec is not None and 0 not in leaf.shape:
            found.factors[path] = _factors(path, spec, jnp.asarray(leaf), rule)
            found.roles[path] = matrix_dims(path, leaf)
        elif spec is None and is_guess(matrix_dims) and is_named_like_no_kernel(path):
            found.roles[path] = None
            if len(leaf.shape) > 1:
                found.left_out[path] = "no kernel by its name"
        elif len(leaf.shape) > 1:
            found.left_out[path] = "matrix_dims gives it no role" if spec is None else "it has no entries"
    if not found.factors:
        seen = first_few(found.left_out, 3) or "no leaf has two axes"
        raise ValueError(f"there are no kernels under matrix_dims ({seen}); give a rule that names them")
    return found


def _factors(path: str, spec: MatrixSpec, leaf: jax.Array, rule: Rule) -> dict[str, Factor]:
    matrices = np.asarray(spec.to_matrices(leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))))
    found = [singular_directions(path, matrix, rule) for matrix in matrices]
    return {side: stack_directions([one[side] for one in found], spec.batch_shape) for side in ("in", "out")}
