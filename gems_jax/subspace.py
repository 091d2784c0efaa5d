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

from gems_jax.orthonormal import Project, matmul, norms, orthonormal_inside, there_and_back, times, transposed_times

Decomposition = Literal["svd", "eigh", "subspace"]

# Sweeps of block power iteration: from the previous basis, and from a random block.
WARM_SWEEPS = 1
COLD_SWEEPS = 16


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
        return self.project_once(self.project_once(x))

    def project_once(self, x: jax.Array) -> jax.Array:
        """``N x``, once."""
        if self.factor is None:
            return x
        inside = there_and_back(self.factor.astype(x.dtype), x)
        return inside if self.complement else x - inside


def leading_vectors(matrix: jax.Array, rank: int, method: Decomposition) -> jax.Array:
    """Orthonormal ``[..., p, rank]`` spanning the leading left singular vectors of ``[..., p, q]``.

    * ``svd``: ``jnp.linalg.svd``, the reference.
    * ``eigh``: eigenvectors of the Gram matrix of the smaller side; where the kept side is the larger one
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
        return jnp.linalg.svd(matrix, full_matrices=False)[0][..., :rank]
    if method == "eigh":
        return _eigh_vectors(matrix, rank)
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
    gradient, is_normal = _scaled(gradient)
    warm = jnp.asarray(has_previous)
    inside, coordinates, lift = _coordinates(frame, gradient.dtype)
    others = None if exclude is None else coordinates(exclude)

    def project_once(x: jax.Array) -> jax.Array:
        x = inside(x)
        return x if others is None else x - there_and_back(others, x)

    def project(x: jax.Array) -> jax.Array:
        if frame.factor is None and others is None:
            return x
        return jax.lax.fori_loop(0, 2, lambda _, x: project_once(x), x)

    there = jnp.ones((1, rank), gradient.dtype) if columns is None else columns[..., None, :].astype(gradient.dtype)
    start, matrix = coordinates(previous), coordinates(gradient)
    fill = there * jax.random.normal(key, start.shape[-2:], matrix.dtype)
    # Together, as projections are most of what there is to compile.
    together = project(jnp.concatenate([matrix, jnp.broadcast_to(fill, start.shape)], axis=-1))
    matrix, fill = together[..., :-rank], together[..., -rank:]
    rounding = 100 * jnp.finfo(gradient.dtype).eps
    usable = finite & is_normal & (norms(matrix) > rounding * norms(gradient))
    # The scale of a gradient is irrelevant to its directions; without this the Gram matrix may underflow.
    matrix, _ = _scaled(matrix)

    start = jnp.where(warm[..., None, None], start, fill)
    if method == "subspace":
        sweeps = jnp.where(jnp.all(warm), WARM_SWEEPS, COLD_SWEEPS)
        basis = orthonormal_inside(start, project, fill, matrix, sweeps)
    else:
        basis = leading_vectors(matrix, rank, method) * there
        exact = method == "svd" or gradient.shape[-2] <= gradient.shape[-1]
        if not exact or frame.factor is not None or exclude is not None:
            basis = orthonormal_inside(basis, project, fill)
    basis = lift(basis)
    basis = canonical_signs(basis) if signs == "canonical" else basis
    if signs == "align":
        basis = jnp.where(warm[..., None, None], align(basis, previous), canonical_signs(basis))
    return jnp.where(usable, basis, previous), usable[..., 0, 0]


def _scaled(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A matrix whose largest entry is 1, and whether it has any that is a normal number (``[..., 1, 1]``)."""
    largest = jnp.max(jnp.abs(matrix), axis=(-2, -1), keepdims=True)
    is_normal = largest >= jnp.finfo(matrix.dtype).tiny
    return matrix / jnp.where(is_normal, largest, 1), is_normal


def _coordinates(frame: Frame, dtype: Any) -> tuple[Project, Project, Project]:
    """Where bases are made: ``N x``, then from outside to coordinates, and back.

    Coordinates are those of a thin basis ``Q`` of the null space, if that is what is kept: fewer rows.
    """
    if frame.factor is None or not frame.complement:
        return frame.project_once, lambda x: x, lambda x: x
    factor = frame.factor.astype(dtype)
    # Within a stack there are columns of zeros: coordinates of nothing.
    there = jnp.any(factor != 0, axis=-2)[..., None].astype(dtype)
    return lambda x: x * there, lambda x: transposed_times(factor, x), lambda x: times(factor, x)
