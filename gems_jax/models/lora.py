"""Low-rank adapters of frozen kernels (LoRA, arXiv 2106.09685), for any tree of parameters.

``flax.nnx.LoRA`` wraps a module with one kernel of two axes, and qwix 0.1.8 raises IndexError on kernels that a scan
slices. Kernels here are stacks of layers and may have several input or output axes, so adapters are a tree of their
own beside the parameters, and training is that of any tree:

    loss(adapters, batch) = model_loss(lora.apply(params, adapters, alpha=16), batch)
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from gems_jax.leaf_path import leaf_path
from gems_jax.linalg.matrix_dims import MatrixRule, MatrixSpec, matrix_specs, stacked_matrix_dims
from gems_jax.linalg.stacks import placed_like
from gems_jax.types import PyTree

Adapters = dict[str, dict[str, jax.Array]]


def init(
    params: PyTree,
    rank: int,
    key: jax.Array,
    matrix_dims: MatrixRule | None = None,
    dtype: Any = jnp.float32,
) -> Adapters:
    """Adapters that change nothing yet: ``A`` normal with variance ``1 / in``, ``B`` zero (section 4.1).

    Args:
      params: tree of arrays.
      rank: r, of every adapter.
      key: PRNG key.
      matrix_dims: which leaves get an adapter, and their matrix roles; default `stacked_matrix_dims`.
      dtype: of the adapters.

    Returns:
      ``{path: {"a": [*batch, in, r], "b": [*batch, r, out]}}`` with the batch axes of a stack of kernels first.

    Raises:
      ValueError: no kernels under ``matrix_dims``, or a rank that is below 1 or above a kernel's smaller side.

    Example:
      >>> adapters = init({"mlp": {"kernel": jnp.ones((6, 8, 4))}}, 2, jax.random.key(0))
      >>> jax.tree.map(jnp.shape, adapters)
      {'mlp/kernel': {'a': (6, 8, 2), 'b': (6, 2, 4)}}
    """
    specs = _specs(params, matrix_dims)
    if not specs:
        raise ValueError("no parameter is a kernel under matrix_dims, so there is nothing to adapt; give another rule")
    adapters: Adapters = {}
    for number, (path, spec) in enumerate(sorted(specs.items())):
        fan_in, out = spec.matrix_shape
        if not 1 <= rank <= min(fan_in, out):
            raise ValueError(
                f"rank={rank} does not suit {path!r}, a kernel of {fan_in} x {out}: 1 to {min(fan_in, out)}"
            )
        drawn = jax.random.normal(jax.random.fold_in(key, number), (*spec.batch_shape, fan_in, rank), jnp.float32)
        adapters[path] = {
            "a": (drawn * fan_in**-0.5).astype(dtype),
            "b": jnp.zeros((*spec.batch_shape, rank, out), dtype),
        }
    return adapters


def apply(
    params: PyTree,
    adapters: Mapping[str, Mapping[str, jax.Array]],
    *,
    alpha: float,
    matrix_dims: MatrixRule | None = None,
) -> PyTree:
    """The parameters with ``W + alpha / r A B`` for adapted kernels, the others as they are; pure.

    Args:
      params: tree of arrays.
      adapters: from `init`.
      alpha: scale of the adapters; dividing it by their rank keeps learning rates comparable between ranks.
      matrix_dims: as for `init`.

    Returns:
      A tree like ``params``. The sum is taken in float32 and rounded to the kernel's dtype.

    Raises:
      ValueError: an adapter without its kernel, or of other sizes.

    Example:
      >>> params = {"kernel": jnp.zeros((2, 3))}
      >>> adapters = {"kernel": {"a": jnp.ones((2, 1)), "b": jnp.ones((1, 3))}}
      >>> apply(params, adapters, alpha=2.0)["kernel"].tolist()
      [[2.0, 2.0, 2.0], [2.0, 2.0, 2.0]]
    """
    specs = _specs(params, matrix_dims)
    if unknown := sorted(set(adapters) - set(specs)):
        raise ValueError(
            f"there is an adapter for {unknown[0]!r}, which is no kernel of these parameters under matrix_dims; "
            f"kernels are {sorted(specs)[:3]}..."
        )
    for path, adapter in adapters.items():
        _check(path, adapter, specs[path])

    def adapted(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        name = leaf_path(path)
        if name not in adapters:
            return leaf
        a, b = (adapters[name][part].astype(jnp.float32) for part in "ab")
        spec = specs[name]
        product = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST).reshape(spec.batch, *spec.matrix_shape)
        adapted = (leaf.astype(jnp.float32) + alpha / a.shape[-1] * spec.from_matrices(product)).astype(leaf.dtype)
        return _beside(leaf, adapted)

    return jax.tree_util.tree_map_with_path(adapted, params)


@jax.custom_vjp
def _beside(kernel: jax.Array, adapted: jax.Array) -> jax.Array:
    """An adapted kernel, and its gradient, where the kernel lies.

    Adapters are small and on every device, which the compiler may take for a reason to have all else there as well.
    """
    return placed_like(kernel, adapted)


def _beside_forward(kernel: jax.Array, adapted: jax.Array) -> tuple[jax.Array, jax.Array]:
    return placed_like(kernel, adapted), kernel


def _beside_backward(kernel: jax.Array, gradient: jax.Array) -> tuple[None, jax.Array]:
    # Here the kernel only says where; its own gradient goes by way of what was adapted.
    return None, placed_like(kernel, gradient)


_beside.defvjp(_beside_forward, _beside_backward)


def merge(
    model: nnx.Module,
    adapters: Mapping[str, Mapping[str, jax.Array]],
    *,
    alpha: float,
    matrix_dims: MatrixRule | None = None,
) -> nnx.Module:
    """A model of the same kind whose kernels hold their adapters, to be saved or served; ``model`` is left alone.

    Args:
      model: the frozen base.
      adapters, alpha, matrix_dims: see `apply`.

    Returns:
      A Flax NNX module.

    Example:
      >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
      >>> adapters = init(nnx.state(model, nnx.Param), 1, jax.random.key(0))
      >>> merge(model, adapters, alpha=1.0)(jnp.ones(2)).shape
      (3,)
    """
    graph, params, *others = nnx.split(model, nnx.Param, ...)
    return nnx.merge(graph, apply(params, adapters, alpha=alpha, matrix_dims=matrix_dims), *others)


def _specs(params: PyTree, rule: MatrixRule | None) -> dict[str, MatrixSpec]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    specs = matrix_specs(params, rule or stacked_matrix_dims)
    return {leaf_path(path): spec for (path, _), spec in zip(leaves, specs, strict=True) if spec is not None}


def _check(path: str, adapter: Mapping[str, jax.Array], spec: MatrixSpec) -> None:
    """Raises ``ValueError`` unless an adapter has its kernel's sizes."""
    if set(adapter) != {"a", "b"}:
        raise ValueError(f"the adapter of {path!r} has {sorted(adapter)}, expected arrays 'a' and 'b'")
    rank, (fan_in, out) = adapter["a"].shape[-1], spec.matrix_shape
    expected = {"a": (*spec.batch_shape, fan_in, rank), "b": (*spec.batch_shape, rank, out)}
    for part, shape in expected.items():
        if adapter[part].shape != shape:
            raise ValueError(
                f"the adapter of {path!r} has {part!r} of shape {list(adapter[part].shape)}, the kernel "
                f"{list(spec.shape)} needs {list(shape)}: it was made for another model or rule"
            )
