"""State of the transform, and the ways between a tree of leaves and batched groups of kernels."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gems_jax.linalg.projection import projected_axis_first
from gems_jax.transform.plan import KernelPlan
from gems_jax.types import PyTree


class Diagnostics(NamedTuple):
    """Diagnostics of the last step, and counters; read with `diagnostics`.

    Numbers are float32, or float64 where a parameter is.

    Attributes:
      gates: ``[T]``.
      weights: ``[T]`` of the tasks in the shared gradient.
      grad_norms: ``[T]`` global norms.
      cosines: ``[T, T]`` between the tasks' gradients; negative: conflict. 0 where a gradient is zero.
      captured: ``[1 + T]`` share of the squared gradient norm (kernels only) that the bases capture,
        shared branch first.
      update_norm: global norm of the update, before the learning rate.
      refreshed: bases replaced in this step.
      failed: refreshes, from the first step on, that gave no basis: nothing but rounding of a gradient lies in its null
        space, or it was not decomposed. Such a branch keeps what it has (without a basis it takes no step) until the
        next refresh.
      waiting: branches that wait for a usable gradient.
      absent: ``[T]`` steps in which a task had nothing to say.
      skipped: ``[T]`` steps in which a task's gradient (or what came merged for all) was not finite and was left
        out.
    """

    gates: jax.Array
    weights: jax.Array
    grad_norms: jax.Array
    cosines: jax.Array
    captured: jax.Array
    update_norm: jax.Array
    refreshed: jax.Array
    failed: jax.Array
    waiting: jax.Array
    absent: jax.Array
    skipped: jax.Array


class GemsState(NamedTuple):
    """State of `scale_by_gems`: arrays only; trees mirror the parameters' (``optax.MaskedNode`` elsewhere).

    Without their boxes (see `gems_jax.boxes`), but for statistics of ``fallback`` that are of their parameter's shape.

    Attributes:
      count: ``[]`` int32 steps taken.
      shared_basis: ``[*batch, p, r]`` per kernel; ``batch`` is ``[1]`` for a kernel that is not stacked.
      task_basis: ``[T, *batch, p, r_t]`` per kernel.
      shared_inner: inner transform's state on ``[r, q]``, leading axes ``[*batch]``.
      task_inner: the same, leading axes ``[T, *batch]``.
      pending: ``[1 + T, *batch]`` bool, branches that wait for a usable gradient.
      previous: ``[T, *batch, r_t, q]`` former low-rank updates, for gates that learn.
      recovered: ``[*batch]`` norms of what was added from outside the bases, for ``recovery``.
      fallback: state of the transform for all other leaves.
      gate: state of the gate.
      null_space: factors by input.
      diagnostics: see `Diagnostics`.
    """

    count: jax.Array  # type: ignore[assignment]
    shared_basis: PyTree
    task_basis: PyTree
    shared_inner: PyTree
    task_inner: PyTree
    pending: PyTree
    previous: PyTree
    recovered: PyTree
    fallback: PyTree
    gate: PyTree
    null_space: dict[str, jax.Array]
    diagnostics: Diagnostics


def gems_states(state: PyTree) -> list[GemsState]:
    """Those inside any optimiser state, of a chain, a partition or a wrapper."""

    def is_gems(x: Any) -> bool:
        return isinstance(x, GemsState)

    return [x for x in jax.tree.leaves(state, is_leaf=is_gems) if is_gems(x)]


def work_dtype(dtype: Any) -> Any:
    """The dtype to compute in: float32, or wider (and complex) where the array is as JAX holds it."""
    return jnp.promote_types(jax.dtypes.canonicalize_dtype(dtype), jnp.float32)


def mirror(params: PyTree, values: dict[int, Any]) -> PyTree:
    """A tree like ``params`` with some leaves' values, ``MaskedNode`` elsewhere."""
    treedef: Any = jax.tree.structure(params)
    return treedef.unflatten([values.get(i, optax.MaskedNode()) for i in range(treedef.num_leaves)])


def entries(tree: PyTree, treedef: Any) -> list[Any]:
    """The inverse of `mirror`: one entry a leaf of the parameters."""
    return treedef.flatten_up_to(tree)


def split_inner(structure: Any, tree: PyTree, treedef: Any) -> list[Any]:
    """Inner state with parameter trees at its leaves -> one inner state a parameter leaf."""
    columns = [entries(leaf, treedef) for leaf in structure.flatten_up_to(tree)]
    return [structure.unflatten([column[i] for column in columns]) for i in range(treedef.num_leaves)]


def join_inner(structure: Any, params: PyTree, states: dict[int, Any]) -> PyTree:
    """The inverse of `split_inner`."""
    leaves = {i: structure.flatten_up_to(state) for i, state in states.items()}
    return structure.unflatten(
        [mirror(params, {i: values[j] for i, values in leaves.items()}) for j in range(structure.num_leaves)]
    )


def gather(arrays: Sequence[jax.Array], leading: int, batch_ndim: int) -> jax.Array:
    """State arrays ``[*lead, *batch, ...]`` of a group's kernels as one ``[*lead, k, ...]``."""
    if len(arrays) > 1:
        return jax.lax.concatenate(list(arrays), leading)
    (x,) = arrays
    return x.reshape(*x.shape[:leading], -1, *x.shape[leading + batch_ndim :])


def scatter(x: jax.Array, group: Sequence[KernelPlan], leading: int) -> list[jax.Array]:
    """The inverse of `gather`."""
    if len(group) > 1:
        return list(jax.lax.split(x, (1,) * len(group), leading))
    return [x.reshape(*x.shape[:leading], *group[0].batch_shape, *x.shape[leading + 1 :])]


def to_matrices(leaves: Sequence[jax.Array], group: Sequence[KernelPlan], leading: int) -> jax.Array:
    """Parameters or gradients ``[*lead, *shape]`` of a group as ``[*lead, k, p, q]``, projected axis first."""
    spec, side = group[0].spec, group[0].side
    if len(leaves) == 1:
        return projected_axis_first(spec.to_matrices(leaves[0], leading), side)
    joined = jnp.stack(leaves)
    stacked = spec.to_matrices(joined, leading + 1)
    stacked = stacked.reshape(*stacked.shape[: leading + 1], *stacked.shape[-2:])
    return projected_axis_first(jnp.moveaxis(stacked, 0, leading), side)


def to_leaves(matrices: jax.Array, group: Sequence[KernelPlan]) -> list[jax.Array]:
    """``[k, in, out]`` -> the kernels' own shapes."""
    spec = group[0].spec
    if len(group) == 1:
        return [spec.from_matrices(matrices)]
    stacked = spec.from_matrices(matrices[:, None], leading=1)
    parts = jax.lax.split(stacked.reshape(-1, *spec.shape[1:]), (spec.shape[0],) * len(group), 0)
    return list(parts)
