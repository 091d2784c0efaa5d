"""The nearest orthogonal matrix, by products in one loop: compilers unroll singular value decompositions."""

import jax
import jax.numpy as jnp

from gems_jax.linalg.orthonormal import matmul, orthonormal_columns

# By bytes of a number. Each pass multiplies small singular values by 1.5: as many as bring what rounding adds to those
# of zero near 1.
_PASSES = {4: 64, 8: 128}
# Distance of ``X^T X`` from ``I`` with which the pass that finds it is the last: it leaves the square.
_NEAR = {4: 1e-3, 8: 1e-8}


def nearest_orthogonal(matrix: jax.Array, there: jax.Array) -> jax.Array:
    """The orthogonal polar factor ``M (M^T M)^(-1/2)``, the rotation ``R`` of the largest ``trace(R^T M)``.

    By Newton-Schulz iteration, ``X <- X (3 I - X^T X) / 2``, which takes singular values between 0 and sqrt(3) to 1 and
    leaves singular vectors as they are (Higham, Functions of Matrices, 2008, section 8.3). Where a singular value is 0
    any completion is as near, and the one of a matrix that differs by rounding is taken.

    Args:
      matrix: ``[..., r, r]``, singular values at most 1.
      there: ``[..., 1, r]`` bool; rows and columns that are not count as those of the identity, and stay so exactly.

    Returns:
      ``[..., r, r]``, orthogonal to rounding; zeros where the matrix is not finite.

    Example:
      >>> rotation = nearest_orthogonal(jnp.array([[0.0, 0.5], [-0.1, 0.0]]), jnp.array([[True, True]]))
      >>> bool(jnp.allclose(rotation, jnp.array([[0.0, 1.0], [-1.0, 0.0]]), atol=1e-4))
      True
    """
    size, width = matrix.shape[-1], matrix.dtype.itemsize
    one = jnp.eye(size, dtype=matrix.dtype)
    both = there & there.mT
    rounding = float(jnp.finfo(matrix.dtype).eps) * jax.random.normal(jax.random.key(0), (size, size), matrix.dtype)
    start = jnp.where(both, matrix + rounding, one)

    def unfinished(state: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        _, distance, passes = state
        return (distance > _NEAR[width]) & (passes < _PASSES[width])

    def one_pass(state: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        x, _, passes = state
        gram = matmul(x.mT, x)
        return 1.5 * x - 0.5 * matmul(x, gram), jnp.max(jnp.abs(gram - one)), passes + 1

    begin = (start, jnp.ones((), matrix.dtype), jnp.zeros((), jnp.int32))
    return orthonormal_columns(jax.lax.while_loop(unfinished, one_pass, begin)[0])[0]
