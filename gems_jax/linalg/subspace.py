"""Low-rank bases of gradients, made inside the null space.

Kept side first: a gradient is ``[..., p, q]`` and a basis ``U: [..., p, r]`` spans leading left singular vectors
of the constrained gradient. Callers transpose for the other side; leading axes are a stack of kernels.
"""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp

from gems_jax.linalg.orthonormal import (
    Project,
    matmul,
    norms,
    orthonormal_inside,
    project_onto_span,
    times,
    transposed_times,
)
from gems_jax.linalg.polar import nearest_orthogonal
from gems_jax.linalg.projection import Projector
from gems_jax.linalg.stacks import (
    map_stack,
    mesh_of_devices,
    whole,
    whole_columns,
)

Decomposition = Literal["svd", "eigh", "subspace"]

# Sweeps of block power iteration: from the previous basis, and from a random block.
WARM_SWEEPS = 1
COLD_SWEEPS = 16


def leading_vectors(matrix: jax.Array, rank: int, method: Decomposition) -> jax.Array:
    """Orthonormal ``[..., p, rank]`` spanning the leading left singular vectors of ``[..., p, q]``.

    * ``svd``: ``jnp.linalg.svd``, the reference; where it does not converge (LAPACK's gives NaN for some fine
      matrices of deficient rank) eigenvectors of ``A A^T``.
    * ``eigh``: eigenvectors of the Gram matrix of the smaller side; where the projected axis is the larger one
      ``U = A V S^-1``. Several times faster on CPU, same captured energy (singular values below about 3e-4
      of the largest lose accuracy in float32, which costs energy of order 1e-7).

    ``subspace`` iterates: see `orthonormal_inside`. Columns beyond the matrix's rank are arbitrary, possibly zero.

    Args:
      matrix: ``[..., p, q]`` float32 or float64, entries of order 1.
      rank: at most ``min(p, q)``.
      method: one of the above.

    Returns:
      ``[..., p, rank]``.

    Example:
      >>> import jax.numpy as jnp
      >>> a = jnp.diag(jnp.array([1.0, 3.0, 2.0]))
      >>> jnp.abs(leading_vectors(a, 1, "eigh")).round(3).ravel().tolist()
      [0.0, 1.0, 0.0]
    """
    if method == "svd":
        return _svd_vectors(matrix, rank)
    if method == "eigh":
        return _eigh_vectors(matrix, rank)
    raise ValueError(f"decomposition {method!r} is unknown; choose 'svd', 'eigh' or 'subspace'")


def _svd_vectors(matrix: jax.Array, rank: int) -> jax.Array:
    vectors = jnp.linalg.svd(matrix, full_matrices=False)[0][..., :rank]
    finite = is_finite(vectors)

    def instead(matrix: jax.Array) -> jax.Array:
        return jnp.where(finite, vectors, _leading_eigenvectors(matmul(matrix, matrix.mT), rank)[1])

    return jax.lax.cond(jnp.all(finite), lambda _: vectors, instead, matrix)


def is_finite(matrix: jax.Array) -> jax.Array:
    """Whether all entries of a matrix are, ``[..., p, q] -> [..., 1, 1]``."""
    # By a sum, as 0 times anything else is not 0: XLA has sums on CPU ready, and compiles others for each shape.
    return jnp.sum(matrix * 0, axis=(-2, -1), keepdims=True) == 0


def _eigh_vectors(matrix: jax.Array, rank: int) -> jax.Array:
    p, q = matrix.shape[-2:]
    if p <= q:
        return _leading_eigenvectors(matmul(matrix, matrix.mT), rank)[1]
    values, vectors = _leading_eigenvectors(matmul(matrix.mT, matrix), rank)
    floor = jnp.finfo(matrix.dtype).eps * q * values[..., :1]
    significant = values > floor
    scale = jnp.where(significant, jax.lax.rsqrt(jnp.where(significant, values, 1)), 0)
    return matmul(matrix, vectors) * scale


def _leading_eigenvectors(gram: jax.Array, rank: int) -> tuple[jax.Array, jax.Array]:
    """``([..., 1, rank], [..., d, rank])`` of ``[..., d, d]``; on a mesh each device takes some members of a stack."""

    def leading(gram: jax.Array, _: Any = None) -> tuple[jax.Array, jax.Array]:
        values, vectors = jnp.linalg.eigh(gram)
        return values[..., None, ::-1][..., :rank], vectors[..., ::-1][..., :rank]

    if gram.ndim == 2 or mesh_of_devices() is None:
        return leading(gram)
    values, vectors = map_stack(leading, gram.ndim - 2, gram, None)
    return whole(values), whole(vectors)


def canonical_signs(basis: jax.Array) -> jax.Array:
    """Flips each column so that its entry of largest magnitude (the first on ties) is positive.

    Example:
      >>> import jax.numpy as jnp
      >>> canonical_signs(jnp.array([[-0.8, 0.6], [0.6, 0.8]])).tolist()
      [[0.8..., 0.6...], [-0.6..., 0.8...]]
    """
    sizes, rows = jnp.abs(basis), jax.lax.broadcasted_iota(basis.dtype, basis.shape, basis.ndim - 2)
    # By reductions alone, which devices that share the rows do each on its own: looking an entry up gathers them. All
    # of numbers with a point: XLA has these ready on CPU, and compiles others for each shape.
    largest = sizes == jnp.max(sizes, axis=-2, keepdims=True)
    first = jnp.min(jnp.where(largest, rows, basis.shape[-2]), axis=-2, keepdims=True)
    entry = jnp.sum(jnp.where(rows == first, basis, 0), axis=-2, keepdims=True)
    return basis * jnp.where(entry < 0, -1, 1).astype(basis.dtype)


def align(basis: jax.Array, previous: jax.Array) -> jax.Array:
    """Rotates a basis within its span onto a former one: ``U R``, ``R`` the polar factor of ``U^T U_old``.

    Moments kept from the former coordinates then stay meaningful.

    Args:
      basis: ``[..., p, r]`` orthonormal.
      previous: ``[..., p, r]`` orthonormal.

    Returns:
      ``[..., p, r]`` of the same span as ``basis``, as near to ``previous`` as a rotation gets.

    Example:
      >>> import jax.numpy as jnp
      >>> old = jnp.eye(3)[:, :2]
      >>> bool(jnp.allclose(align(old[:, ::-1], old), old, atol=1e-6))
      True
    """
    overlap = matmul(basis.mT, previous)
    # Zero columns (a layer whose null space is smaller than the rank) stay where they are.
    there = jnp.sum(basis**2, axis=-2, keepdims=True) > 0.5
    if overlap.ndim > 2 and mesh_of_devices():
        whole_pair = whole(overlap), whole(there)
        rotation = map_stack(lambda pair, _: nearest_orthogonal(*pair), overlap.ndim - 2, whole_pair, None)
    else:
        rotation = nearest_orthogonal(overlap, there)
    return matmul(basis, rotation)


def make_basis(
    gradient: jax.Array,
    rank: int,
    projector: Projector,
    *,
    method: Decomposition,
    signs: Literal["canonical", "align"],
    previous: jax.Array,
    has_previous: jax.Array,
    exclude: jax.Array | None = None,
    columns: jax.Array | None = None,
    key: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """A basis for one branch of one kernel, inside the null space (GEMS, arXiv 2601.09496, section 3).

    ``U = Q W`` with ``W`` the leading singular vectors of ``Q^T G``, or the same through ``K``. Singular
    vectors of ``N G`` alone would not do: beyond its rank they are arbitrary and may lie in ``K``.

    Args:
      gradient: ``[..., p, q]`` finite or not; leading axes are a stack of kernels.
      rank: columns of the basis.
      projector: null space of the projected axis.
      method: decomposition, see `leading_vectors`.
      signs: ``canonical`` or ``align``, see the functions of these names.
      previous: ``[..., p, rank]`` the basis in force, zeros before the first.
      has_previous: ``[...]`` bool, whether it is one.
      exclude: ``[..., p, s]`` orthonormal columns to stay orthogonal to (the shared basis), or ``None``.
      columns: ``[..., rank]`` bool, false for columns beyond the dimension left: they are zero.
      key: random key for completing missing directions.

    Returns:
      ``(basis [..., p, rank], usable [...])``: ``usable`` is false where the gradient is zero, not finite or
      nothing but rounding remains of it inside the null space, and where the decomposition fails; then ``basis`` is
      ``previous``.
    """
    finite = is_finite(gradient)
    gradient = jnp.where(finite, gradient, 0)
    gradient, is_normal = scaled(gradient)
    warm = jnp.asarray(has_previous)
    there = room_for(columns, rank, gradient.dtype)
    if method == "subspace":
        basis, remains = _iterated(gradient, projector, exclude, previous, warm, there, key)
    else:
        basis, remains = _decomposed(gradient, rank, projector, method, exclude, there, key)
    # Flags of the bases lie with those of the gradient, and through them would have the gradient split as bases are.
    usable = finite & is_normal & remains & whole(is_finite(basis))
    if signs == "align":
        basis = jnp.where(warm[..., None, None], align(basis, previous), canonical_signs(basis))
    else:
        basis = canonical_signs(basis)
    return jnp.where(usable, basis, previous), usable[..., 0, 0]


def _iterated(
    gradient: jax.Array,
    projector: Projector,
    exclude: jax.Array | None,
    previous: jax.Array,
    warm: jax.Array,
    there: jax.Array,
    key: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """By block power iteration from the previous basis; and whether more than rounding remains, ``[..., 1, 1]``.

    The gradient is multiplied by thin blocks alone: on a mesh it stays split as it is, no device needs all of it.
    """
    rank = previous.shape[-1]

    def project(x: jax.Array) -> jax.Array:
        return project_inside(x, projector.project_once, exclude)

    # The former basis too: inside but for its rounding, which may meet a gradient that is much larger outside.
    normals = jax.random.normal(key, (math.prod(previous.shape[-2:]),), there.dtype)
    fill = jnp.broadcast_to(generic_columns(projector, previous.shape[-2], there, normals), previous.shape)
    together = project(jnp.concatenate([previous, fill], axis=-1))
    start, fill = whole_columns(together[..., :rank]), whole_columns(together[..., rank:])
    # Generic directions inside see as much of what remains of the gradient as is their share of all directions.
    lengths = norms(fill, -2)
    seen = norms(transposed_times(gradient, fill / jnp.where(lengths > 0, lengths, 1)))
    share = jnp.sqrt(jnp.sum(lengths > 0, axis=-1, keepdims=True) / gradient.shape[-2])
    remains = seen > rounding(gradient.dtype) * share * norms(gradient)
    start = jnp.where(warm[..., None, None], start, fill)
    sweeps = jnp.where(jnp.all(warm), WARM_SWEEPS, COLD_SWEEPS)
    return orthonormal_inside(start, project, fill, gradient, sweeps), remains


def _decomposed(
    gradient: jax.Array,
    rank: int,
    projector: Projector,
    method: Decomposition,
    exclude: jax.Array | None,
    there: jax.Array,
    key: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """By `leading_vectors` of the projected gradient; and whether more than rounding remains of it, ``[..., 1, 1]``."""
    inside, coordinates, lift = _coordinates(projector, gradient.dtype)
    others = None if exclude is None else coordinates(exclude)
    matrix = coordinates(gradient)
    fill = jnp.broadcast_to(
        there * jax.random.normal(key, (matrix.shape[-2], rank), matrix.dtype), (*matrix.shape[:-1], rank)
    )

    def project(x: jax.Array) -> jax.Array:
        return project_inside(x, inside, others)

    if mesh_of_devices():  # of two that lie differently
        matrix, fill = project(matrix), whole_columns(project(fill))
    else:  # together, as projections are most of what there is to compile
        together = project(jnp.concatenate([matrix, fill], axis=-1))
        matrix, fill = together[..., :-rank], together[..., -rank:]
    remains = norms(matrix) > rounding(gradient.dtype) * norms(gradient)
    # The scale of a gradient is irrelevant to its directions; without this the Gram matrix may underflow.
    matrix, _ = scaled(matrix)
    basis = whole_columns(leading_vectors(matrix, rank, method) * there)
    # Decompositions that fail give NaN, which would be taken for columns that vanish, and completed.
    remains &= whole(is_finite(basis))
    exact = method == "svd" or gradient.shape[-2] <= gradient.shape[-1]
    if not exact or projector.factor is not None or exclude is not None:
        basis = orthonormal_inside(basis, project, fill)
    return lift(basis), remains


def project_inside(x: jax.Array, once: Project, others: jax.Array | None) -> jax.Array:
    """``x`` inside the null space, and outside the span of ``others``: projected twice, for float32."""

    def both(x: jax.Array) -> jax.Array:
        x = once(x)
        return x if others is None else x - project_onto_span(others, x)

    return jax.lax.fori_loop(0, 2, lambda _, x: both(x), x)


def room_for(columns: jax.Array | None, rank: int, dtype: Any) -> jax.Array:
    """``[..., 1, rank]``, 0 for the columns of a basis that there is no room for; ``columns``: see `make_basis`."""
    return jnp.ones((1, rank), dtype) if columns is None else columns[..., None, :].astype(dtype)


def generic_columns(projector: Projector, rows: int, there: jax.Array, normals: jax.Array) -> jax.Array:
    """Generic columns ``[..., p, rank]``, zeros where there is no room; of the null space where its basis is known.

    ``normals``: at least ``p * rank`` numbers, normally distributed, of which the first are taken.
    """

    def block(rows: int) -> jax.Array:
        columns = there.shape[-1]
        return there * normals[: rows * columns].reshape(rows, columns)

    if projector.factor is None or not projector.complement:
        return block(rows)
    factor = projector.factor.astype(there.dtype)
    return times(factor, block(factor.shape[-1]))


def rounding(dtype: Any) -> float:
    """Share of a gradient's norm below which what is left of it is rounding."""
    return 100 * float(jnp.finfo(dtype).eps)


def scaled(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A matrix whose largest entry is 1, and whether it has any that is a normal number (``[..., 1, 1]``)."""
    largest = jnp.max(jnp.abs(matrix), axis=(-2, -1), keepdims=True)
    is_normal = largest >= jnp.finfo(matrix.dtype).tiny
    return matrix / jnp.where(is_normal, largest, 1), is_normal


def _coordinates(projector: Projector, dtype: Any) -> tuple[Project, Project, Project]:
    """Where bases are made: ``N x``, then from outside to coordinates, and back.

    Coordinates are those of a thin basis ``Q`` of the null space, if that is what is kept: fewer rows.
    """
    if projector.factor is None or not projector.complement:
        return projector.project_once, lambda x: x, lambda x: x
    factor = projector.factor.astype(dtype)
    # Within a stack there are columns of zeros: coordinates of nothing.
    there = jnp.any(factor != 0, axis=-2)[..., None].astype(dtype)
    return lambda x: x * there, lambda x: transposed_times(factor, x), lambda x: times(factor, x)
