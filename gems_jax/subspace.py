"""Low-rank bases of gradients, made inside the null space.

Kept side first: a gradient is ``[..., p, q]`` and a basis ``U: [..., p, r]`` spans leading left singular vectors
of the constrained gradient. Callers transpose for the other side; leading axes are a stack of kernels.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

Decomposition = Literal["svd", "eigh", "subspace"]
Project = Callable[[jax.Array], jax.Array]

# Distance from the span of the columns before it that a column of length 1 needs for Cholesky QR in float32: the
# loss of orthogonality of one pass grows with the inverse square.
_WELL_CONDITIONED = 0.03

# Sweeps of block power iteration: from the previous basis, and from a random block.
WARM_SWEEPS = 1
COLD_SWEEPS = 16


def matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    """``a @ b`` at the highest precision, so that no accelerator rounds it to bfloat16."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def norms(x: jax.Array, axis: int | tuple[int, int] = (-2, -1)) -> jax.Array:
    """Euclidean norms over the given axes, which stay as axes of size 1."""
    return jnp.sqrt(jnp.sum(x * x, axis=axis, keepdims=True))


class Frame(NamedTuple):
    """The null space that bases are made in: all of it (``factor is None``), or given by one thin factor.

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
        factor = self.factor.astype(x.dtype)
        for _ in range(2):
            inside = matmul(factor, matmul(factor.mT, x))
            x = inside if self.complement else x - inside
        return x


def leading_vectors(
    matrix: jax.Array,
    rank: int,
    method: Decomposition,
    start: jax.Array | None = None,
    is_warm: jax.Array | bool = False,
) -> jax.Array:
    """Orthonormal ``[..., p, rank]`` spanning the leading left singular vectors of ``[..., p, q]``.

    * ``svd``: ``jnp.linalg.svd``, the reference.
    * ``eigh``: eigenvectors of the Gram matrix of the smaller side; where the kept side is the larger one
      ``U = A V S^-1``. Several times faster on CPU, same captured energy (singular values below about 3e-4
      of the largest lose accuracy in float32, which costs energy of order 1e-7).
    * ``subspace``: block power iteration from ``start`` (GaLore's fixed basis, kept warm), matrix products
      and the orthonormalisation of thin blocks only.

    Columns beyond the matrix's rank are arbitrary, possibly zero; see `orthonormal_inside`.

    Args:
      matrix: ``[..., p, q]`` float32 or float64.
      rank: at most ``min(p, q)``.
      method: one of the above.
      start: ``[..., p, rank]`` block to iterate from, for ``subspace`` only.
      is_warm: ``[...]`` bool, whether ``start`` is a former basis (few sweeps, if all are) or random (more).

    Returns:
      ``[..., p, rank]``.

    Example:
      >>> import jax.numpy as jnp
      >>> a = jnp.diag(jnp.array([1.0, 3.0, 2.0]))
      >>> jnp.abs(leading_vectors(a, 1, "eigh")).round(3).ravel().tolist()
      [0.0, 1.0, 0.0]
    """
    # The scale of a gradient is irrelevant to its directions; without this the Gram matrix may underflow.
    largest = jnp.max(jnp.abs(matrix), axis=(-2, -1), keepdims=True)
    matrix = matrix / jnp.where(largest > 0, largest, 1)
    if method == "svd":
        return jnp.linalg.svd(matrix, full_matrices=False)[0][..., :rank]
    if method == "eigh":
        return _eigh_vectors(matrix, rank)
    if method == "subspace":
        if start is None:
            raise ValueError("decomposition 'subspace' iterates from a block: pass start [p, rank]")
        return _power_iteration(matrix, start, is_warm)
    raise ValueError(f"decomposition {method!r} is unknown; choose 'svd', 'eigh' or 'subspace'")


def _eigh_vectors(matrix: jax.Array, rank: int) -> jax.Array:
    p, q = matrix.shape[-2:]
    if p <= q:
        return jnp.linalg.eigh(matmul(matrix, matrix.mT))[1][..., ::-1][..., :rank]
    values, vectors = jnp.linalg.eigh(matmul(matrix.mT, matrix))
    values, vectors = values[..., None, ::-1][..., :rank], vectors[..., ::-1][..., :rank]
    floor = jnp.finfo(matrix.dtype).eps * q * values[..., :1]
    significant = values > floor
    scale = jnp.where(significant, jax.lax.rsqrt(jnp.where(significant, values, 1)), 0)
    return matmul(matrix, vectors) * scale


def _power_iteration(matrix: jax.Array, start: jax.Array, is_warm: jax.Array | bool) -> jax.Array:
    def sweep(_: int, block: jax.Array) -> jax.Array:
        return orthonormal_columns(matmul(matrix, matmul(matrix.mT, block)))[0]

    # The trip count is data, so the first refresh and the later ones are one program.
    return jax.lax.fori_loop(0, jnp.where(jnp.all(jnp.asarray(is_warm)), WARM_SWEEPS, COLD_SWEEPS), sweep, start)


def orthonormal_columns(block: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Orthonormal columns of the same leading spans, by Cholesky where the block is well conditioned.

    ``X = Q R`` with ``R^T R = X^T X`` is a few matrix products (Cholesky QR), much faster than Householder
    reflections, which are left for blocks whose columns, scaled to length 1, nearly depend on each other.

    Args:
      block: ``[..., p, r]``.

    Returns:
      ``(Q [..., p, r], well [])``: ``well`` says whether all blocks were well conditioned. Columns keep their
      direction (``R`` has a positive diagonal); those that depended on others are arbitrary.

    Example:
      >>> import jax.numpy as jnp
      >>> q, well = orthonormal_columns(jnp.array([[2.0, 2.0], [0.0, 1.0]]))
      >>> q.round(6).tolist(), bool(well)
      ([[1.0, 0.0], [0.0, 1.0]], True)
    """
    lengths = norms(block, -2)
    block = block / jnp.where(lengths > 0, lengths, 1)
    # Distance of each column from the span of those before it; NaN where the matrix is not positive definite.
    lower = jax.lax.linalg.cholesky(matmul(block.mT, block), symmetrize_input=False)
    distances = jnp.diagonal(lower, axis1=-2, axis2=-1)
    well = jnp.all(distances > _WELL_CONDITIONED)

    def by_cholesky(block: jax.Array) -> jax.Array:
        return jax.lax.linalg.triangular_solve(lower, block, left_side=False, lower=True, transpose_a=True)

    def by_householder(block: jax.Array) -> jax.Array:
        vectors, triangle = jnp.linalg.qr(block)
        # Reflections may flip a column; keep the direction it came with.
        signs = jnp.where(jnp.diagonal(triangle, axis1=-2, axis2=-1) < 0, -1, 1).astype(vectors.dtype)
        return vectors * signs[..., None, :]

    return jax.lax.cond(well, by_cholesky, by_householder, block), well


def orthonormal_inside(block: jax.Array, project: Project, fill: jax.Array) -> jax.Array:
    """Orthonormal columns inside a subspace, leading columns first, missing ones completed.

    Columns that vanish under the projection (they were arbitrary) are replaced by those of ``fill``; then
    projection and orthonormalisation alternate, since that of nearly dependent columns brings forbidden
    directions back.

    Args:
      block: ``[..., p, r]`` candidate columns of norm about 1.
      project: orthogonal projection onto a subspace of at least ``r`` dimensions.
      fill: ``[..., p, r]`` generic columns.

    Returns:
      ``[..., p, r]``, orthonormal to rounding, inside the subspace to rounding.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> drop_first = lambda x: x.at[0].set(0.0)
      >>> u = orthonormal_inside(jnp.eye(4)[:, :2], drop_first, jax.random.normal(jax.random.key(0), (4, 2)))
      >>> bool(jnp.allclose(u.T @ u, jnp.eye(2), atol=1e-6)), jnp.abs(u[0]).tolist()
      (True, [0.0, 0.0])
    """
    block = project(block)
    lengths = norms(block, -2)
    block = jnp.where(lengths > 0.1, block / jnp.where(lengths > 0.1, lengths, 1), fill / norms(fill, -2))

    def unfinished(carry: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        sweeps, was_well, _ = carry
        return sweeps < jnp.where(was_well, 2, 3)

    def sweep(carry: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        sweeps, was_well, block = carry
        block, well = orthonormal_columns(project(block))
        return sweeps + 1, was_well & well, block

    # A loop, not copies: reflections are slow to compile on TPU.
    return jax.lax.while_loop(unfinished, sweep, (jnp.zeros((), jnp.int32), jnp.ones((), bool), block))[2]


def map_stack(function: Callable[..., Any], depth: int, varying: Any, shared: Any) -> Any:
    """``function(varying, shared)``, which takes stacks; on CPU it gets their members one by one.

    A batched LAPACK call on CPU waits for the thread pool that it may be running on itself: as many of them at once
    as the pool has threads, from two threads of a program for instance, wait for ever (seen with jaxlib 0.10.2), and
    on a pool of two threads a single one gains nothing. Single calls do not wait.

    Args:
      function: on trees of arrays with any leading axes.
      depth: leading axes of ``varying``.
      varying: tree of arrays ``[*lead, ...]``.
      shared: tree of arrays with the last of these leading axes only.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size > 1 and all(kind == AxisType.Auto for kind in mesh.axis_types):
        return _spread(function, depth, varying, shared, mesh)
    if jax.default_backend() != "cpu":
        return function(varying, shared)
    if depth > 1:
        return jax.lax.map(lambda members: map_stack(function, depth - 1, members, shared), varying)
    return jax.lax.map(lambda members: function(*members), (varying, shared))


def _spread(function: Callable[..., Any], depth: int, varying: Any, shared: Any, mesh: AbstractMesh) -> Any:
    """`map_stack` with the members of the stack spread over all devices of a mesh, whole.

    Nothing is sent inside the function, and no device repeats what another does: the compiler by itself gathers the
    stack and has every device decompose all of it.
    """
    lead = jax.tree.leaves(varying)[0].shape[:depth]
    size = math.prod(lead)
    # Members of zeros, which give no basis, make the stack divisible.
    missing = -size % mesh.size
    each = PartitionSpec(mesh.axis_names)

    def flat(x: jax.Array) -> jax.Array:
        x = x.reshape(size, *x.shape[depth:])
        return jnp.pad(x, ((0, missing), *((0, 0),) * (x.ndim - 1)))

    shared = jax.tree.map(lambda x: jnp.broadcast_to(x, (*lead, *x.shape[1:])), shared)
    of_device = jax.shard_map(
        lambda members: map_stack(function, 1, *members),
        mesh=mesh,
        in_specs=(each,),
        out_specs=each,
        check_vma=False,
    )
    found = of_device(jax.tree.map(flat, (varying, shared)))
    return jax.tree.map(lambda x: x[:size].reshape(*lead, *x.shape[1:]), found)


def canonical_signs(basis: jax.Array) -> jax.Array:
    """Flips each column so that its entry of largest magnitude (the first on ties) is positive.

    Example:
      >>> import jax.numpy as jnp
      >>> canonical_signs(jnp.array([[-0.8, 0.6], [0.6, 0.8]])).tolist()
      [[0.8..., 0.6...], [-0.6..., 0.8...]]
    """
    rows = jnp.argmax(jnp.abs(basis), axis=-2, keepdims=True)
    entries = jnp.take_along_axis(basis, rows, axis=-2)
    return basis * jnp.where(entries < 0, -1, 1).astype(basis.dtype)


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
      >>> align(old[:, ::-1], old).round(3).tolist()
      [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]
    """
    overlap = matmul(basis.mT, previous)
    # Zero columns (a layer whose null space is smaller than the rank) stay where they are.
    absent = jnp.sum(basis**2, axis=-2, keepdims=True) < 0.5
    overlap += absent * jnp.eye(basis.shape[-1], dtype=overlap.dtype)
    left, _, right = jnp.linalg.svd(overlap, full_matrices=False)
    return matmul(basis, matmul(left, right))


def make_basis(
    gradient: jax.Array,
    rank: int,
    frame: Frame,
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
      frame: null space of the kept side.
      method: decomposition, see `leading_vectors`.
      signs: ``canonical`` or ``align``, see the functions of these names.
      previous: ``[..., p, rank]`` the basis in force, zeros before the first.
      has_previous: ``[...]`` bool, whether it is one.
      exclude: ``[..., p, s]`` orthonormal columns to stay orthogonal to (the shared basis), or ``None``.
      columns: ``[..., rank]`` bool, false for columns beyond the dimension left: they are zero.
      key: random key for completing missing directions.

    Returns:
      ``(basis [..., p, rank], usable [...])``: ``usable`` is false where the gradient is zero, not finite or
      nothing but rounding remains of it inside the null space; then ``basis`` is ``previous``.
    """
    whole = (-2, -1)
    finite = jnp.all(jnp.isfinite(gradient), axis=whole, keepdims=True)
    gradient = jnp.where(finite, gradient, 0)
    largest = jnp.max(jnp.abs(gradient), axis=whole, keepdims=True)
    is_normal = largest >= jnp.finfo(gradient.dtype).tiny
    gradient = gradient / jnp.where(is_normal, largest, 1)
    warm = jnp.asarray(has_previous)

    def project(x: jax.Array) -> jax.Array:
        x = frame.project(x)
        if exclude is not None:
            for _ in range(2):
                x = x - matmul(exclude, matmul(exclude.mT, x))
        return x

    matrix, lift, coordinates = project(gradient), lambda w: w, lambda u: u
    if frame.factor is not None and frame.complement:
        factor = frame.factor.astype(gradient.dtype)
        matrix, lift, coordinates = (
            matmul(factor.mT, matrix),
            lambda w: matmul(factor, w),
            lambda u: matmul(factor.mT, u),
        )
    rounding = 100 * jnp.finfo(gradient.dtype).eps
    usable = finite & is_normal & (norms(matrix) > rounding * norms(gradient))

    fill = jnp.broadcast_to(jax.random.normal(key, previous.shape[-2:], gradient.dtype), previous.shape)
    start = coordinates(jnp.where(warm[..., None, None], previous, project(fill)))
    basis = lift(leading_vectors(matrix, rank, method, start, warm))
    exact = method == "svd" or (method == "eigh" and gradient.shape[-2] <= gradient.shape[-1])
    anywhere = frame.factor is None and exclude is None
    if method == "subspace" and anywhere:
        # Nearly orthonormal already: the last sweep ended with one such pass.
        basis = orthonormal_columns(basis)[0]
    elif not exact or not anywhere:
        basis = orthonormal_inside(basis, project, fill)
    basis = canonical_signs(basis) if signs == "canonical" else basis
    if columns is not None:
        basis = basis * columns[..., None, :].astype(basis.dtype)
    if signs == "align":
        basis = jnp.where(warm[..., None, None], align(basis, previous), canonical_signs(basis))
    return jnp.where(usable, basis, previous), usable[..., 0, 0]
