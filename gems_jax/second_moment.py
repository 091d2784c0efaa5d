"""Second moments of a layer's inputs or outputs, as running sums."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class SecondMoment(NamedTuple):
    """Running uncentred second moment ``E[x x^T]`` of a layer's inputs (or outputs).

    Attributes:
      total: ``[..., d, d]`` float32 sum of ``x x^T``.
      count: ``[]`` int32 number of vectors.

    Example:
      >>> import jax.numpy as jnp
      >>> m = SecondMoment.zeros(2).update(jnp.array([[1.0, 2.0], [9.0, 9.0]]), mask=jnp.array([1, 0]))
      >>> m.matrix().tolist()
      [[1.0, 2.0], [2.0, 4.0]]
    """

    total: jax.Array
    count: jax.Array  # type: ignore[assignment]

    @classmethod
    def zeros(cls, d: int) -> "SecondMoment":
        """An empty moment of dimension ``d``."""
        return cls(jnp.zeros((d, d), jnp.float32), jnp.zeros((), jnp.int32))

    def update(self, x: jax.Array, mask: jax.Array | None = None) -> "SecondMoment":
        """Adds vectors ``x: [..., d]``, those where ``mask: [...]`` is not 0.

        Raises:
          ValueError: shapes that do not fit.
        """
        if x.shape[-1] != self.total.shape[-1]:
            raise ValueError(f"x has shape {list(x.shape)}, expected [..., {self.total.shape[-1]}]")
        if mask is not None and mask.shape != x.shape[:-1]:
            raise ValueError(f"mask has shape {list(mask.shape)}, expected {list(x.shape[:-1])}, one a vector")
        return self.merge(outer_sum(x, mask))

    def merge(self, other: "SecondMoment") -> "SecondMoment":
        """The moment of both samples together."""
        return SecondMoment(self.total + other.total, self.count + other.count)

    def matrix(self) -> jax.Array:
        """``E[x x^T]: [..., d, d]``, zeros before the first vector."""
        return self.total / jnp.maximum(self.count, 1)


def outer_sum(x: jax.Array, mask: jax.Array | None = None) -> SecondMoment:
    """``sum x x^T`` and the number of vectors, float32: bfloat16 products are exact there."""
    vectors = x.reshape(-1, x.shape[-1])
    count = jnp.asarray(vectors.shape[0], jnp.int32)
    if mask is not None:
        present = mask.reshape(-1) != 0
        vectors = jnp.where(present[:, None], vectors, 0)
        count = jnp.sum(present, dtype=jnp.int32)
    total = jnp.matmul(
        vectors.T, vectors, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32
    )
    return SecondMoment(total, count)
