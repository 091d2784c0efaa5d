"""Orthonormal columns inside a subspace, and block power iteration, by one pass in one loop.

Everything is matrix products but for the triangle of Cholesky QR, and there is one instance of that in a program.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from gems_jax.linalg.stacks import by_member, map_stack, mesh_of_devices, whole, whole_columns

Project = Callable[[jax.Array], jax.Array]

# Distances of a column of length 1 from the span of those before it, of the worst column of a block. With less than
# the first Cholesky QR in float32 loses too much orthogonality (the loss grows with the inverse square) to go on from;
# with more than the second a pass has changed next to nothing.
_WELL_CONDITIONED = 0.03
_ORTHONORMAL = 0.999
# Columns whose products with all others sum up to less are far from dependent.
_APART = 0.5
# A column of length 1 of which less remains is replaced: rounding is too much of it.
_VANISHED = 0.01
# Most passes in a row: each brings a hundredfold nearer, so that blocks which need a fourth are rare.
_PASSES = 6
# Rows of a part of a product on TPUs.
_CHUNK = 512


def matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    """``a @ b`` at the highest precision, so that no accelerator rounds it to bfloat16."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def norms(x: jax.Array, axis: int | tuple[int, int] = (-2, -1)) -> jax.Array:
    """Euclidean norms over the given axes, which stay as axes of size 1."""
    return jnp.sqrt(jnp.sum(x * x, axis=axis, keepdims=True))


def _chunks(x: jax.Array) -> jax.Array | None:
    """Rows in parts, ``[..., p, n] -> [p / 512, ..., 512, n]``, where that is worth a loop: on TPUs.

    Their compiler takes seconds for one large product of the highest precision, half a second for a loop of small ones.
    On a mesh the rows may be split over devices already, and a loop over them would send them around.
    """
    *lead, rows, columns = x.shape
    if jax.default_backend() != "tpu" or mesh_of_devices() or rows <= _CHUNK or rows % _CHUNK:
        return None
    return jnp.moveaxis(x.reshape(*lead, rows // _CHUNK, _CHUNK, columns), -3, 0)


def times(a: jax.Array, x: jax.Array) -> jax.Array:
    """``A x`` of a tall ``A``: ``[..., p, k], [..., k, n] -> [..., p, n]``."""
    parts = _chunks(a)
    if parts is None:
        return by_member(matmul, a, x)
    product = jnp.moveaxis(jax.lax.map(lambda part: matmul(part, x), parts), 0, -3)
    return product.reshape(*product.shape[:-3], a.shape[-2], x.shape[-1])


def transposed_times(a: jax.Array, x: jax.Array) -> jax.Array:
    """``A^T x`` of a tall ``A``: ``[..., p, k], [..., p, n] -> [..., k, n]``."""
    parts, others = _chunks(a), _chunks(x)
    if parts is None or others is None:
        return by_member(lambda a, x: matmul(a.mT, x), a, x)
    lead = jnp.broadcast_shapes(a.shape[:-2], x.shape[:-2])
    begin = jnp.zeros((*lead, a.shape[-1], x.shape[-1]), jnp.result_type(a, x))
    return jax.lax.scan(lambda total, pair: (total + matmul(pair[0].mT, pair[1]), None), begin, (parts, others))[0]


def project_onto_span(a: jax.Array, x: jax.Array) -> jax.Array:
    """``A A^T x`` of a tall ``A``."""
    return by_member(lambda a, x: times(a, transposed_times(a, x)), a, x)


def _project_onto_span_whole(a: jax.Array, x: jax.Array) -> jax.Array:
    """`project_onto_span` of a thin ``x``."""
    return times(a, whole_columns(transposed_times(a, x)))


def orthonormal_columns(block: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One pass towards orthonormal columns of the same leading spans: Cholesky QR of columns scaled to length 1.

    ``X = Q R`` with ``R^T R = X^T X`` is a few matrix products. Where columns nearly depend on others, ``R^T R`` is the
    Gram matrix and a multiple of the identity above its rounding (shifted Cholesky QR, arXiv 1809.11085), without
    which the factorisation of what rounding has made indefinite grows beyond all bounds. The remainder of such a column
    is then short and not yet orthogonal, and another pass makes it so.

    Args:
      block: ``[..., p, r]``.

    Returns:
      ``(Q [..., p, r], distance [])``: the least distance of a column from the span of those before it. Columns keep
      their direction (``R`` has a positive diagonal), those of zeros stay.

    Example:
      >>> q, distance = orthonormal_columns(jnp.array([[2.0, 2.0], [0.0, 1.0]]))
      >>> q.round(6).tolist(), round(float(distance), 4)
      ([[1.0, 0.0], [0.0, 1.0]], 0.4472)
    """
    # By the largest entry first: squares of what a steep spectrum leaves of a column underflow.
    largest = jnp.max(jnp.abs(block), axis=-2, keepdims=True)
    there = largest >= jnp.finfo(block.dtype).tiny
    block = jnp.where(there, block / jnp.where(there, largest, 1), 0)
    lengths = norms(block, -2)
    block = block / jnp.where(lengths > 0, lengths, 1)
    gram = transposed_times(block, block) + jnp.eye(block.shape[-1], dtype=block.dtype) * (lengths == 0)
    p, r = block.shape[-2:]
    rounding = 4 * float(jnp.finfo(block.dtype).eps) * (math.sqrt(p * r) + r)
    if block.ndim > 2 and mesh_of_devices():
        # Small, and the one part that is no product: each device takes some members of the stack.
        factored = map_stack(lambda gram, _: inverse_factor(gram, rounding), block.ndim - 2, whole(gram), None)
        inverse, distance = (whole(x) for x in factored)
    else:
        inverse, distance = inverse_factor(gram, rounding)
    return times(block, inverse.mT), jnp.min(distance)


def inverse_factor(gram: jax.Array, rounding: float) -> tuple[jax.Array, jax.Array]:
    """``L^-1`` of ``L L^T = G``, by triangular factorisation where that is quick and safe, else shifted.

    Args:
      gram: ``[..., r, r]`` positive semidefinite up to rounding, ones on the diagonal.
      rounding: more than that of its eigenvalues.

    Returns:
      ``([..., r, r], [...])``: the inverse, and the least entry of the diagonal of ``L``; where ``G`` had to be shifted
      less than 1, whatever it is.

    Example:
      >>> inverse, least = inverse_factor(jnp.array([[1.0, 0.6], [0.6, 1.0]]), 1e-6)
      >>> inverse.round(4).tolist(), round(float(least), 4)
      ([[1.0, 0.0], [-0.75, 1.25]], 0.8)
    """

    def by_elimination(gram: jax.Array) -> tuple[jax.Array, jax.Array]:
        apart = jnp.max(jnp.sum(jnp.abs(gram), axis=-1), axis=-1)[..., None, None] - 1 < _APART
        shift = jnp.where(apart, 0, rounding).astype(gram.dtype)
        inverse, pivots = inverse_cholesky(gram + shift * jnp.eye(gram.shape[-1], dtype=gram.dtype))
        least = jnp.sqrt(jnp.maximum(jnp.min(pivots - shift[..., 0], axis=-1), 0))
        # After a shift columns are orthonormal up to it alone: never the last pass.
        return inverse, jnp.where(apart[..., 0, 0], least, jnp.minimum(least, 0.99))

    if jax.default_backend() == "tpu":
        # Its compiler unrolls factorisations and triangular solves, for many seconds each.
        return by_elimination(gram)
    # NaN where the matrix is not positive definite.
    lower = jax.lax.linalg.cholesky(gram, symmetrize_input=False)
    distance = jnp.min(jnp.diagonal(lower, axis1=-2, axis2=-1), axis=-1)

    def by_substitution(gram: jax.Array) -> tuple[jax.Array, jax.Array]:
        one = jnp.broadcast_to(jnp.eye(gram.shape[-1], dtype=gram.dtype), gram.shape)
        return jax.lax.linalg.triangular_solve(lower, one, left_side=True, lower=True), distance

    return jax.lax.cond(jnp.all(distance > _WELL_CONDITIONED), by_substitution, by_elimination, gram)


def inverse_cholesky(gram: jax.Array) -> tuple[jax.Array, jax.Array]:
    """``L^-1`` of ``L L^T = G``, by Gaussian elimination on ``[G, I]`` in one loop.

    Args:
      gram: ``[..., r, r]`` positive definite.

    Returns:
      ``([..., r, r], [..., r])``: the inverse, and the squares of the diagonal of ``L``.

    Example:
      >>> inverse, pivots = inverse_cholesky(jnp.array([[1.0, 0.6], [0.6, 1.0]]))
      >>> inverse.round(4).tolist(), [round(float(x), 4) for x in pivots]
      ([[1.0, 0.0], [-0.75, 1.25]], [1.0, 0.64])
    """
    size = gram.shape[-1]
    rows = jnp.arange(size)[:, None]
    least = jnp.finfo(gram.dtype).eps  # of a matrix that is positive definite to rounding

    def eliminate(number: jax.Array, system: jax.Array) -> jax.Array:
        row = jax.lax.dynamic_index_in_dim(system, number, -2)
        pivot = jnp.maximum(jax.lax.dynamic_index_in_dim(row, number, -1), least)
        # What is left of the Gram matrix stays symmetric, so this row is the column as well.
        return system - jnp.where(rows > number, row[..., :size].mT / pivot, 0) * row

    system = jnp.concatenate([gram, jnp.broadcast_to(jnp.eye(size, dtype=gram.dtype), gram.shape)], -1)
    system = jax.lax.fori_loop(0, size, eliminate, system)
    pivots = jnp.diagonal(system, axis1=-2, axis2=-1)
    inverse = system[..., size:] * jax.lax.rsqrt(jnp.maximum(pivots, least))[..., None]
    return inverse, pivots


def orthonormal_inside(
    block: jax.Array,
    project: Project,
    fill: jax.Array,
    matrix: jax.Array | None = None,
    sweeps: jax.Array | int = 0,
) -> jax.Array:
    """Orthonormal columns inside a subspace, leading columns first, missing ones completed.

    With a matrix ``A`` they first take sweeps of block power iteration, ``X <- N A A^T X``, towards the leading left
    singular vectors of ``N A``: GaLore's fixed basis (arXiv 2403.03507), kept warm, matrix products alone. ``N`` acts
    on the thin blocks only, never on ``A``, which stays where it lies. Then projection and
    orthonormalisation alternate, since that of nearly dependent columns brings forbidden directions back, until a pass
    changes next to nothing; two in all for a former basis. Columns that vanish under the projection or depend on those
    before them (they were arbitrary) are replaced by those of ``fill``.

    Args:
      block: ``[..., p, r]`` candidate columns of norm about 1; columns of zeros stay, where ``fill`` has them too.
      project: orthogonal projection onto a subspace of at least as many dimensions as there are other columns.
      fill: ``[..., p, r]`` generic columns of the subspace.
      matrix: ``[..., p, q]``, entries of order 1.
      sweeps: of power iteration, ``[]``; a stack takes them together.

    Returns:
      ``[..., p, r]``, orthonormal to rounding, inside the subspace to rounding.

    Example:
      >>> drop_first = lambda x: x.at[0].set(0.0)
      >>> fill = drop_first(jax.random.normal(jax.random.key(0), (4, 2)))
      >>> u = orthonormal_inside(jnp.eye(4)[:, :2], drop_first, fill)
      >>> bool(jnp.allclose(u.T @ u, jnp.eye(2), atol=1e-6)), jnp.abs(u[0]).tolist()
      (True, [0.0, 0.0])
    """
    lengths = norms(fill, -2)
    fill = fill / jnp.where(lengths > 0, lengths, 1)

    def multiplied(block: jax.Array) -> jax.Array:
        assert matrix is not None
        return project(by_member(_project_onto_span_whole, matrix, block))

    def projected(block: jax.Array) -> jax.Array:
        block = project(block)
        return jnp.where(norms(block, -2) > _VANISHED, block, fill)

    # Sweeps left, passes since the last one, the distance that the last pass found.
    State = tuple[jax.Array, jax.Array, jax.Array, jax.Array]

    def unfinished(state: State) -> jax.Array:
        left, passes, distance, _ = state
        return (left > 0) | (passes == 0) | ((distance < _ORTHONORMAL) & (passes < _PASSES))

    def one_pass(state: State) -> State:
        left, passes, distance, block = state
        if matrix is None:
            block, distance = orthonormal_columns(projected(block))
            return left, passes + 1, distance, whole_columns(block)
        multiply = (left > 0) & ((distance > _WELL_CONDITIONED) | (passes == _PASSES))
        block = jax.lax.cond(multiply, multiplied, projected, block)
        block, distance = orthonormal_columns(block)
        return left - multiply, jnp.where(multiply, 0, passes + 1), distance, whole_columns(block)

    # One loop with one orthonormalisation, whose trip count is data: the first refresh and the later ones are one
    # program, and there is little of it to compile.
    begin = (jnp.asarray(sweeps, jnp.int32), jnp.zeros((), jnp.int32), jnp.ones((), block.dtype), block)
    return jax.lax.while_loop(unfinished, one_pass, begin)[3]
