"""Parameters, batches and null spaces as shapes, types and shardings alone, for estimates and plans."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from gems_jax.data.batching.layouts import LAYOUTS
from gems_jax.models.registry import FAMILIES
from gems_jax.null_space.directions import Factor
from gems_jax.null_space.moment_pass import kernel_specs
from gems_jax.null_space.space import OUTPUTS, NullSpace, Sides
from gems_jax.null_space.tracing.kernel_inputs import kernel_inputs
from gems_jax.training.distributed.mesh import param_sharding
from gems_jax.types import PyTree

# A row's label tokens: an item, whose identifier is one token, and the end token.
ANSWER = 2


@dataclasses.dataclass(frozen=True)
class Zeros:
    """The description of an array; zeros where a traced function asks for its values."""

    shape: tuple[int, ...]
    dtype: Any = jnp.dtype("float32")

    def __jax_array__(self) -> jax.Array:
        return jnp.zeros(self.shape, self.dtype)


def sharded(x: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    """The description of an array with a sharding."""
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def sharded_params(params: PyTree, mesh: Mesh | AbstractMesh) -> PyTree:
    """Parameters where `gems_jax.training.distributed.mesh.RULES` put them."""
    return jax.tree.map(sharded, params, param_sharding(params, mesh))


def bytes_of(leaf: Any) -> int:
    """Bytes of an array's part on each device."""
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def device_bytes(tree: PyTree) -> int:
    """Bytes of a tree on each device.

    Example:
      >>> device_bytes(jax.numpy.zeros((2, 3)))
      24
    """
    return sum(bytes_of(leaf) for leaf in jax.tree.leaves(tree))


def batch_lengths(model_config: Any, length: int) -> dict[str, int]:
    """Tokens of a row in each array of a batch of `gems_jax.data.batching.batches.make_batch`.

    Args:
      model_config: a `T5Config` or `DecoderConfig`.
      length: of inputs.
    """
    return LAYOUTS[FAMILIES[model_config.model_type].model.layout].columns(length, ANSWER)


def abstract_null_space(
    loss: Callable[[PyTree, PyTree, Any], Any],
    params: PyTree,
    frozen: PyTree,
    batch: dict[str, jax.ShapeDtypeStruct],
    protected: float,
    side: Sides = "in",
) -> NullSpace:
    """Factors of the shapes that a null space of these parameters has, one for every distinct input of kernels.

    On both sides, as it is made from the weights: two for every kernel.

    Args:
      loss: ``(params, frozen, batch of one task) -> scalar``.
      params, frozen, batch: of it.
      protected: share of each input's directions that is protected.
      side: of the null space.
    """
    if side == "both":
        return _of_weights(params, protected)
    inputs = kernel_inputs(lambda p, given: loss(p, *given), params, (frozen, batch), kernel_specs(params), side)
    factors = {}
    for entry in inputs.inputs:
        # The thinner of two bases is kept.
        columns = max(1, round(min(protected, 1 - protected) * entry.dim))
        basis: Any = Zeros((*entry.stack, entry.dim, columns))
        kept = np.full(entry.stack, round(protected * entry.dim))
        factors[entry.name] = Factor(basis, protected > 0.5, kept, np.zeros(entry.stack))
    return NullSpace(factors, inputs.names(), side)


def _of_weights(params: PyTree, protected: float) -> NullSpace:
    factors, specs = {}, kernel_specs(params)
    for path, spec in specs.items():
        assert spec is not None
        kept = round(protected * min(spec.matrix_shape))
        for name, dim in zip((path, path + OUTPUTS), spec.matrix_shape, strict=True):
            basis: Any = Zeros((*spec.batch_shape, dim, max(1, min(kept, dim - kept))))
            sizes = np.full(spec.batch_shape, kept)
            factors[name] = Factor(basis, 2 * kept > dim, sizes, np.zeros(spec.batch_shape))
    return NullSpace(factors, {path: path for path in specs}, "both", outputs={path: path + OUTPUTS for path in specs})
