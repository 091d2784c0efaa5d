"""Which axes of a parameter are a matrix's inputs and outputs."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from gems_jax.leaf_path import named_leaves
from gems_jax.types import PyTree

# Whole names of tables, heads over a vocabulary, gains and offsets, never parts of names: `embedding`, but not
# `embedding_projection`; `lm_head`, but not `multi_head_attention`.
_TABLE = re.compile(
    r"((token|word|position|pos|segment|type|item|user|relative|rel|relative_position)_?)?"
    r"(embed|embeds|embedding|embeddings|embedder)(_?table)?|embed_(tokens|positions)|wte|wpe|"
    r"((relative|rel)_)?((attention|position|pos)_)?bias|pos(ition)?(_emb)?",
    re.IGNORECASE,
)
_VOCABULARY_HEAD = re.compile(r"lm_head|embed_out|logits|logits_dense", re.IGNORECASE)
_HEAD = re.compile(r"head", re.IGNORECASE)
_GAIN = re.compile(r"(\w+_)?(layer_?norm|rms_?norm|norm|ln)(_?(\d+|f))?|bias|scale|gain|gamma|beta", re.IGNORECASE)


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


def is_named_like_no_kernel(path: str) -> bool:
    """Whether a leaf, or the module that it belongs to, has the name of a table, a head, a gain or an offset.

    Whole names count, and only these two of a path: the rest of it says nothing about the leaf.

    Example:
      >>> [is_named_like_no_kernel(path) for path in ("lm_head/kernel", "multi_head_attention/query/kernel")]
      [True, False]
    """
    owner, leaf = _last_names(path)
    if any(name.fullmatch(part) for name in (_TABLE, _VOCABULARY_HEAD, _HEAD) for part in (owner, leaf)):
        return True
    # A norm owns gains, not kernels.
    return bool(_GAIN.fullmatch(leaf)) or (leaf != "kernel" and bool(_GAIN.fullmatch(owner)))


def is_named_like_vocabulary_head(path: str) -> bool:
    """Whether a leaf is by its name a head over the vocabulary, which a product cannot show.

    Example:
      >>> [is_named_like_vocabulary_head(path) for path in ("lm_head/kernel", "shared/embedding", "embedding/kernel")]
      [True, False, False]
    """
    return any(_VOCABULARY_HEAD.fullmatch(name) for name in _last_names(path))


def _last_names(path: str) -> tuple[str, str]:
    names = ["", *path.replace(".", "/").split("/")]
    return names[-2], names[-1]


def default_matrix_dims(path: str, leaf: Any) -> MatrixDims | None:
    """The guess where nothing else is known: two-axis leaves are kernels unless their name says otherwise.

    Embeddings, heads, norms, biases and scales (by whole names, see `is_named_like_no_kernel`) are left alone, and so
    is every leaf of three or more axes, whose roles cannot be guessed. It is a guess: roles that a null space was
    estimated with take its place (`NullSpace.roles`); a rule of your own does not give way, and must agree with them.

    Args:
      path: the leaf's path, see `leaf_path`.
      leaf: anything with a shape.

    Returns:
      ``MatrixDims()`` or ``None``.

    Example:
      >>> import numpy as np
      >>> default_matrix_dims("multi_head_attention/query/kernel", np.zeros((4, 8)))
      MatrixDims(in_axes=-2, out_axes=-1)
      >>> default_matrix_dims("token_embedding/embedding", np.zeros((4, 8))) is None
      True
    """
    return MatrixDims() if len(leaf.shape) == 2 and not is_named_like_no_kernel(path) else None


def stacked_matrix_dims(path: str, leaf: Any) -> MatrixDims | None:
    """A rule for models whose layers are stacked: kernels are ``[in, out]`` or ``[layers, in, out]``.

    As `default_matrix_dims`, a guess too, and leaves of three axes named ``kernel`` are stacks. This is the layout of
    the models in ``gems_jax.models``; a head-split kernel ``[d, heads, head_dim]`` is none, see `observed_matrix_dims`:
    in a module whose leaves do not all begin with one size, `matrix_specs` gives leaves of three axes no role.

    Example:
      >>> import numpy as np
      >>> stacked_matrix_dims("encoder/block/mlp/wo/kernel", np.zeros((6, 8, 4)))
      MatrixDims(in_axes=-2, out_axes=-1)
    """
    if len(leaf.shape) == 3 and path.endswith("kernel") and not is_named_like_no_kernel(path):
        return MatrixDims()
    return default_matrix_dims(path, leaf)


MatrixRule = Callable[[str, Any], MatrixDims | None]
Roles = Mapping[str, MatrixDims | None]


def is_guess(rule: Any) -> bool:
    """Whether a rule guesses from names and shapes, so that roles seen in a model's program take its place."""
    return rule is None or rule is default_matrix_dims or rule is stacked_matrix_dims


def check_role(path: str, shape: Sequence[int], given: MatrixDims, role: MatrixDims) -> None:
    """Raises ``ValueError`` where a given role is not that which a null space was estimated with.

    Example:
      >>> check_role("w", (4, 4), MatrixDims(), MatrixDims(0, 1))
    """
    if _axes(given, shape, path) != _axes(role, shape, path):
        raise ValueError(
            f"matrix_dims gives {given} for {path!r} of shape {list(shape)}, but its null space was estimated with "
            f"{role}: the wrong side would be protected; leave matrix_dims out, or calibrate with the same rule"
        )


def _axes(dims: MatrixDims, shape: Sequence[int], path: str) -> tuple[list[int], list[int]]:
    """In axes and out axes, those of size one left out."""
    resolve(dims, shape, path)

    def wide(which: int | tuple[int, ...]) -> list[int]:
        positive = [a % len(shape) for a in ((which,) if isinstance(which, int) else which)]
        return [a for a in positive if shape[a] > 1]

    return wide(dims.in_axes), wide(dims.out_axes)


def matrix_specs(
    params: PyTree, rule: PyTree | MatrixRule | None, roles: Roles | None = None
) -> list[MatrixSpec | None]:
    """Resolves a rule for every leaf of a tree, in leaf order.

    Args:
      params: tree of arrays or anything with shapes.
      rule: callable ``(path, leaf) -> MatrixDims | None``, a tree like ``params`` of those, or ``None`` for
        `default_matrix_dims`.
      roles: known ones by path (``None``: no matrix), as of a `NullSpace`. They take the place of guesses; where the
        rule is no guess it must agree with them.

    Returns:
      A `MatrixSpec` or ``None`` per leaf.

    Raises:
      ValueError: a tree of another structure, dimension numbers that do not fit, or that contradict known roles.
      TypeError: a rule that returns something else.
    """
    leaves = named_leaves(params)
    guessed, roles = is_guess(rule), roles or {}
    if rule is None:
        rule = default_matrix_dims
    if callable(rule):
        dims = [rule(path, leaf) for path, leaf in leaves]
    else:
        dims = jax.tree.leaves(rule, is_leaf=lambda x: x is None or isinstance(x, MatrixDims))
        if len(dims) != len(leaves):
            raise ValueError(
                f"matrix_dims has {len(dims)} entries for {len(leaves)} parameters; "
                "give a tree like the parameters, with MatrixDims or None at every leaf, or a callable"
            )
    torn = _no_stacks({path: leaf.shape for path, leaf in leaves}) if rule is stacked_matrix_dims else set()
    specs: list[MatrixSpec | None] = []
    for (path, leaf), dim in zip(leaves, dims, strict=True):
        if path in torn:
            dim = None
        if dim is not None and not isinstance(dim, MatrixDims):
            raise TypeError(f"matrix_dims gave {dim!r} for {path!r}; expected MatrixDims or None")
        if path in roles:
            role = roles[path]
            if guessed:
                dim = role
            elif dim is not None and role is not None:
                check_role(path, leaf.shape, dim, role)
        specs.append(None if dim is None else resolve(dim, leaf.shape, path))
    return specs


def _no_stacks(shapes: Mapping[str, Sequence[int]]) -> set[str]:
    """Leaves of three axes that are no stack of layers: beside them, in one module, are leaves of another first size.

    Attention's ``[d, heads, head_dim]`` stand beside ``[heads, head_dim, d]`` and biases ``[heads, head_dim]``.
    """
    modules: dict[str, set[int]] = {}
    for path, shape in shapes.items():
        owner, _, leaf = path.rpartition("/")
        module, kernel = owner.rpartition("/")[0], leaf == "kernel" and len(shape) == 3
        if kernel or (leaf == "bias" and len(shape) == 2 and len(shapes.get(f"{owner}/kernel", ())) == 3):
            modules.setdefault(module, set()).add(shape[0])
    torn = {module for module, sizes in modules.items() if len(sizes) > 1}
    return {
        path for path, shape in shapes.items() if len(shape) == 3 and path.rpartition("/")[0].rpartition("/")[0] in torn
    }
