"""Sizes of arrays that neither overflow nor underflow: squares are taken of values brought near 1 by powers of two.

A power of two changes the exponent alone, so that a sum of squares has the digits it would have without.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gems_jax.linalg.stacks import as_they_lie


def real_dtype(dtypes: Iterable[Any]) -> Any:
    """The dtype of statistics of arrays of these dtypes: float32, or float64 where one of them is as precise.

    NumPy's float64 counts as what JAX makes of it, so without ``jax_enable_x64`` as float32.

    Example:
      >>> [str(real_dtype([d])) for d in (jnp.bfloat16, jnp.complex64)]
      ['float32', 'float32']
    """
    parts = [jnp.zeros((), jax.dtypes.canonicalize_dtype(dtype)).real.dtype for dtype in dtypes]
    return functools.reduce(jnp.promote_types, parts, jnp.dtype(jnp.float32))


def largest(x: jax.Array, axes: int) -> jax.Array:
    """The largest magnitude over the last ``axes`` axes, 0 where they are empty; infinite where an entry is.

    NaN may be lost: XLA's maximum on CPU drops it from 4,096 entries on (seen with jaxlib 0.10.2). Sums do not.
    """
    return jnp.max(jnp.abs(x), axis=tuple(range(x.ndim - axes, x.ndim)), initial=0)


def largest_of_each(stacks: jax.Array) -> jax.Array:
    """`largest` of each matrix, ``[T, k, ..., p, q] -> [T, k, ...]``."""
    return as_they_lie(lambda x: largest(x, 2), stacks)


def task_peaks(stacked: Sequence[jax.Array], num_tasks: int) -> jax.Array:
    """``[T]``: each task's entry of largest magnitude, see `largest`."""
    # By way of each kernel's, which are needed elsewhere too.
    sizes = [largest(largest_of_each(g), g.ndim - 3) if g.ndim > 3 else largest(g, g.ndim - 1) for g in stacked]
    return functools.reduce(jnp.maximum, sizes, jnp.zeros((num_tasks,), jnp.float32))


def is_normal(size: jax.Array) -> jax.Array:
    """Whether a size is finite and one that arithmetic keeps: processors flush smaller ones to 0."""
    return jnp.isfinite(size) & (size >= jnp.finfo(size.dtype).tiny)


def to_one(size: jax.Array) -> jax.Array:
    """The power of two that brings a size near 1; 1 for sizes of 0 and those that are not finite.

    Example:
      >>> to_one(jnp.array([1e30, 4.0, 0.0])).tolist()
      [7.888609052210118e-31, 0.25, 1.0]
    """
    about = jnp.finfo(size.dtype)
    # Within these the power and its inverse are normal numbers.
    bounded = jnp.clip(size, 4 * float(about.tiny), 2.0 ** (about.maxexp - 3))
    power = 1 / jax.lax.reduce_precision(bounded, about.nexp, 0)
    return jnp.where(is_normal(size), power, 1)


def squares(x: jax.Array, axes: int) -> jax.Array:
    """Sum of squared magnitudes over the last ``axes`` axes."""
    products = (x * jnp.conj(x)).real if jnp.iscomplexobj(x) else x * x
    return jnp.sum(products, axis=tuple(range(x.ndim - axes, x.ndim)))


class Size(NamedTuple):
    """Norms of matrices ``[..., p, q]``, ``sqrt(squares) / power``, each ``[...]``; ``power`` is one of two."""

    squares: jax.Array
    power: jax.Array

    def norm(self) -> jax.Array:
        return jnp.sqrt(self.squares) / self.power

    def is_there(self) -> jax.Array:
        """Whether a matrix is finite and not zero."""
        return jnp.isfinite(self.squares) & (self.squares > 0)


def size_of(parts: Sequence[jax.Array], peak: jax.Array) -> Size:
    """The `Size` of matrices ``[..., p, q]``.

    Args:
      parts: the matrices, or pieces of their rows; finite or not.
      peak: ``[...]`` their largest entries, or bounds of these that are not far off: those of what they are sums of.
    """
    power = to_one(peak)
    total = functools.reduce(jnp.add, [squares(part * power[..., None, None], 2) for part in parts])
    return Size(jnp.where(is_normal(peak), total, 0 * peak), power)


def limited(x: jax.Array, size: jax.Array) -> jax.Array:
    """``x`` brought down by a power of two where its size is beyond what can be squared with room to spare.

    Moments of second order would be infinite for ever; transforms that divide by them, or look at signs, take the
    same step as without.

    Args:
      x: any array.
      size: of ``x``, or of each matrix of a stack, with axes of 1 for the rest.

    Example:
      >>> huge, usual = jnp.float32(1e30), jnp.float32(3.0)
      >>> round(float(limited(huge, huge) / 2.0**60), 2), float(limited(usual, usual))
      (0.79, 3.0)
    """
    most = 2.0 ** (jnp.finfo(size.dtype).maxexp // 2 - 4)
    return x * jnp.where(size > most, to_one(size) * most, 1).astype(x.dtype)


def global_norm(arrays: Sequence[jax.Array]) -> jax.Array:
    """Euclidean norm of all entries of all arrays, float32 or wider.

    Example:
      >>> round(float(global_norm([jnp.float32(3e30), jnp.full((1,), 4e30)])) / 1e30, 5)
      5.0
    """
    # Each array is brought near 1 by itself: with one power all of them would have to be there at once.
    peaks = [largest(x, x.ndim).astype(real_dtype([x.dtype])) for x in arrays]
    power = to_one(functools.reduce(jnp.maximum, peaks, jnp.zeros((), jnp.float32)))
    total = jnp.zeros((), power.dtype)
    for x, peak in zip(arrays, peaks, strict=True):
        own = to_one(peak)
        part = squares(x * own.astype(x.dtype), x.ndim)
        total += jnp.where(part > 0, part * (power / own) ** 2, part)
    return jnp.sqrt(total) / power
