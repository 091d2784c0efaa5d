"""Which axes of a parameter are a matrix's inputs and outputs."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from gems_jax.leaf_path import leaf_path

PyTree = Any

# Leaves that are tables, gains or offsets, not linear maps: they stay out of the subspaces by default.
_NOT_A_KERNEL = re.compile(
    r"(^|[/_.])(embed\w*|embedding\w*|wte|wpe|head|lm_head|logits|norm\w*|layer_?norm\w*|rms\w*|ln\w*|bias\w*|"
    r"scale|gain|relative_bias|pos\w*)($|[/_.\d])",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class MatrixDims:
    """The matrix role of a parameter's axes; axes not named are batch axes (a stack of layers, experts).

    ``y = x @ W`` with ``W`` read as ``[*batch, in, out]``, several axes flattened into one.

    Args:
      in_axes: axis or axes that are contracted with the layer's input.
      out_axes: axis or axes of the layer's output.

    Example:
      >>> MatrixDims()                                   # [in, out], or [layers, in, out]
      MatrixDims(in_axes=-2, out_axes=-1)
      >>> resolve(MatrixDims(0, (1, 2)), (64, 8, 16)).matrix_shape   # [d, heads, head_dim]
      (64, 128)
    """

    in_axes: int | tuple[int, ...] = -2
    out_axes: int | tuple[int, ...] = -1


@dataclass(frozen=True)
class MatrixSpec:
    """`MatrixDims` resolved for one shape: static facts, equal for equal parameters."""

    shape: tuple[int, ...]
    order: tuple[int, ...]  # batch axes, then in axes, then out axes
    batch_shape: tuple[int, ...]
    matrix_shape: tuple[int, int]

    @property
    def batch(self) -> int:
        return math.prod(self.batch_shape)

    def to_matrices(self, x: jax.Array, leading: int = 0) -> jax.Array:
        """``[*lead, *shape] -> [*lead, batch, in, out]``, the first ``leading`` axes untouched."""
        order = (*range(leading), *(leading + a for a in self.order))
        return jnp.transpose(x, order).reshape(*x.shape[:leading], self.batch, *self.matrix_shape)

    def from_matrices(self, x: jax.Array, leading: int = 0) -> jax.Array:
        """The inverse of `to_matrices`."""
        permuted = tuple(self.shape[a] for a in self.order)
        inverse = [self.order.index(a) for a in range(len(self.order))]
        order = (*range(leading), *(leading + a for a in inverse))
        return jnp.transpose(x.reshape(*x.shape[:leading], *permuted), order)


def resolve(dims: MatrixDims, shape: Sequence[int], path: str = "") -> MatrixSpec:
    """Checks dimension numbers against a shape and fixes the axis order.

    Args:
      dims: dimension numbers.
      shape: the parameter's shape.
      path: the parameter's path, for the error.

    Returns:
      The static `MatrixSpec`.

    Raises:
      ValueError: an axis outside the shape, or named twice.
    """
    ndim = len(shape)

    def axes(which: int | tuple[int, ...]) -> tuple[int, ...]:
        which = (which,) if isinstance(which, int) else tuple(which)
        if not which or any(not -ndim <= a < ndim for a in which):
            raise ValueError(f"{dims} does not fit parameter {path!r} of shape {list(shape)}: axis out of range")
        return tuple(a % ndim for a in which)

    in_axes, out_axes = axes(dims.in_axes), axes(dims.out_axes)
    if len(set(in_axes + out_axes)) != len(in_axes) + len(out_axes):
        raise ValueError(f"{dims} names an axis of parameter {path!r} (shape {list(shape)}) twice")
    batch_axes = tuple(a for a in range(ndim) if a not in in_axes + out_axes)
    size = lambda which: math.prod(shape[a] for a in which)  # noqa: E731
    return MatrixSpec(
        shape=tuple(shape),
        order=batch_axes + in_axes + out_axes,
        batch_shape=tuple(shape[a] for a in batch_axes),
        matrix_shape=(size(in_axes), size(out_axes)),
    )


def default_matrix_dims(path: str, leaf: Any) -> MatrixDims | None:
    """The rule when none is given: two-axis leaves are kernels unless their path says otherwise.

    Embeddings, heads, norms, biases and scales (by name) are left alone, and so is every leaf of three or
    more axes, whose roles cannot be guessed: name those with a rule of your own.

    Args:
      path: the leaf's path, see `leaf_path`.
      leaf: anything with a shape.

    Returns:
      ``MatrixDims()`` or ``None``.

    Example:
      >>> import numpy as np
      >>> default_matrix_dims("mlp/wi/kernel", np.zeros((4, 8)))
      MatrixDims(in_axes=-2, out_axes=-1)
      >>> default_matrix_dims("token_embedding/embedding", np.zeros((4, 8))) is None
      True
    """
    return MatrixDims() if len(leaf.shape) == 2 and not _NOT_A_KERNEL.search(path) else None


def stacked_matrix_dims(path: str, leaf: Any) -> MatrixDims | None:
    """A rule for models whose layers are stacked: kernels are ``[in, out]`` or ``[layers, in, out]``.

    As `default_matrix_dims`, and leaves of three axes named ``kernel`` are stacks. This is the layout of the
    models in ``gems_jax.models``.

    Example:
      >>> import numpy as np
      >>> stacked_matrix_dims("encoder/block/mlp/wo/kernel", np.zeros((6, 8, 4)))
      MatrixDims(in_axes=-2, out_axes=-1)
    """
    if len(leaf.shape) == 3 and path.endswith("kernel") and not _NOT_A_KERNEL.search(path):
        return MatrixDims()
    return default_matrix_dims(path, leaf)


MatrixRule = Callable[[str, Any], MatrixDims | None]


def matrix_specs(params: PyTree, rule: PyTree | MatrixRule | None) -> list[MatrixSpec | None]:
    """Resolves a rule for every leaf of a tree, in leaf order.

    Args:
      params: tree of arrays or anything with shapes.
      rule: callable ``(path, leaf) -> MatrixDims | None``, a tree like ``params`` of those, or ``None`` for
        `default_matrix_dims`.

    Returns:
      A `MatrixSpec` or ``None`` per leaf.

    Raises:
      ValueError: a tree of another structure, or dimension numbers that do not fit.
      TypeError: a rule that returns something else.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if rule is None:
        rule = default_matrix_dims
    if callable(rule):
        dims = [rule(leaf_path(path), leaf) for path, leaf in leaves]
    else:
        dims = jax.tree.leaves(rule, is_leaf=lambda x: x is None or isinstance(x, MatrixDims))
        if len(dims) != len(leaves):
            raise ValueError(
                f"matrix_dims has {len(dims)} entries for {len(leaves)} parameters; "
                "give a tree like the parameters, with MatrixDims or None at every leaf, or a callable"
            )
    specs: list[MatrixSpec | None] = []
    for (path, leaf), dim in zip(leaves, dims, strict=True):
        if dim is not None and not isinstance(dim, MatrixDims):
            raise TypeError(f"matrix_dims gave {dim!r} for {leaf_path(path)!r}; expected MatrixDims or None")
        specs.append(None if dim is None else resolve(dim, leaf.shape, leaf_path(path)))
    return specs
