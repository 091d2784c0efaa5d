"""Second moments of a layer's inputs or outputs, as running sums."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# A sum of outer products is symmetric: blocks above the diagonal are left out, in eighths of the matrix, but not
# narrower than this. Measured at d = 512 and 1024 on a CPU core: 0.55 of the time of whole products.
_NARROWEST = 128


class SecondMoment(NamedTuple):
    """Running uncentred second moment ``E[x x^T]`` of a layer's inputs (or outputs).

    Attributes:
      total: ``[..., d, d]`` sum of ``x x^T``, float32 or, of float64 vectors, float64.
      count: ``[...]`` int32 number of vectors.

    Example:
      >>> import jax.numpy as jnp
      >>> m = SecondMoment.zeros(2).update(jnp.array([[1.0, 2.0], [9.0, 9.0]]), mask=jnp.array([1, 0]))
      >>> m.matrix().tolist()
      [[1.0, 2.0], [2.0, 4.0]]
    """

    total: jax.Array
    count: jax.Array  # type: ignore[assignment]

    @classmethod
    def zeros(cls, d: int, stack: Sequence[int] = (), dtype: Any = jnp.float32) -> "SecondMoment":
        """An empty moment of dimension ``d``, or a stack of them."""
        return cls(jnp.zeros((*stack, d, d), dtype), jnp.zeros(stack, jnp.int32))

    def update(self, x: jax.Array, mask: jax.Array | None = None) -> "SecondMoment":
        """Adds vectors ``x: [..., d]``, those where ``mask: [...]`` is not 0.

        Raises:
          ValueError: shapes that do not fit.
        """
        if x.shape[-1] != self.total.shape[-1]:
            raise ValueError(f"x has shape {list(x.shape)}, expected [..., {self.total.shape[-1]}]")
        if mask is not None and mask.shape != x.shape[:-1]:
            raise ValueError(f"mask has shape {list(mask.shape)}, expected {list(x.shape[:-1])}, one a vector")
        vectors, count = _present(x.reshape(-1, x.shape[-1]), None if mask is None else mask.reshape(-1))
        dtype = jnp.promote_types(self.total.dtype, vectors.dtype)
        return self.merge(SecondMoment(_products(vectors, vectors, dtype), count))

    def merge(self, other: "SecondMoment") -> "SecondMoment":
        """The moment of both samples together."""
        return SecondMoment(self.total + other.total, self.count + other.count)

    def matrix(self) -> jax.Array:
        """``E[x x^T]: [..., d, d]``, zeros before the first vector."""
        return self.total / jnp.maximum(self.count, 1)[..., None, None]


def add_lower(
    moment: SecondMoment,
    index: Sequence[Any],
    vectors: jax.Array,
    mask: jax.Array | None = None,
    whole_rows: bool = False,
    unit_norm: bool = False,
) -> SecondMoment:
    """Adds vectors to one matrix of a stack, in place where that is possible: blocks on and below the diagonal.

    Args:
      moment: a stack of matrices ``[*stack, d, d]``.
      index: for each axis of the stack a number, traced or not, or ``None`` for all of it.
      vectors: ``[*lead, N, d]``; ``lead`` are the axes with ``None``, of their size or 1.
      mask: ``[N]``, 0 for vectors that do not count.
      whole_rows: adds all blocks at once: for matrices whose rows lie on several devices.
      unit_norm: divides each vector by its norm first; one of zeros stays.

    Returns:
      The moment; its matrices are right on and below the diagonal only, see `symmetric`.

    Example:
      >>> m = add_lower(SecondMoment.zeros(1, (3,)), [2], jnp.array([[2.0], [1.0]]))
      >>> m.total.ravel().tolist(), m.count.tolist()
      ([0.0, 0.0, 5.0], [0, 0, 2])
    """
    stack, d = moment.total.shape[:-2], moment.total.shape[-1]
    vectors, count = _present(vectors, mask)
    if unit_norm:
        # In two steps: an outlier's square may be more than float32 holds.
        vectors = vectors.astype(moment.total.dtype)
        largest = jnp.max(jnp.abs(vectors), axis=-1, keepdims=True)
        vectors = vectors / jnp.where(largest > 0, largest, 1)
        vectors = vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), 1)
    starts = [0 if i is None else i for i in index]
    sizes = [n if i is None else 1 for i, n in zip(index, stack, strict=True)]
    lead = iter(vectors.shape[:-2])
    shape = [1 if i is not None else next(lead) for i in index]

    def add(array: jax.Array, value: jax.Array, start: list[Any], size: list[int]) -> jax.Array:
        # An update of a slice, which a loop can do in place; indexing would scatter.
        value = jax.lax.dynamic_slice(array, start, size) + value
        return jax.lax.dynamic_update_slice(array, value, start)

    total = moment.total
    rows = d if whole_rows else max(_NARROWEST, d // 8)
    for top in range(0, d, rows):
        end = min(top + rows, d)
        block = _products(vectors[..., top:end], vectors[..., :end], total.dtype)
        block = block.reshape(*shape, *block.shape[-2:])
        total = add(total, block, [*starts, top, 0], [*sizes, end - top, end])
    return SecondMoment(total, add(moment.count, count, starts, sizes))


def symmetric(lower: Any) -> Any:
    """The symmetric matrix whose lower triangle is that of ``lower: [d, d]`` (numpy)."""
    import numpy as np

    return np.tril(lower) + np.tril(lower, -1).T


def _present(vectors: jax.Array, mask: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Vectors ``[..., N, d]`` with zeros where ``mask: [N]`` is 0 (they may be infinite), and the others' number."""
    if mask is None:
        return vectors, jnp.asarray(vectors.shape[-2], jnp.int32)
    present = mask != 0
    return jnp.where(present[:, None], vectors, 0), jnp.sum(present, dtype=jnp.int32)


def _products(a: jax.Array, b: jax.Array, dtype: Any) -> jax.Array:
    """``a^T b`` over the vectors ``[..., N, d]``, in float32 or wider: bfloat16 products are exact there."""
    return jnp.einsum("...na,...nb->...ab", a, b, precision=jax.lax.Precision.HIGHEST, preferred_element_type=dtype)
