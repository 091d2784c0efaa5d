"""Where every array of a run lies on the mesh: one table of rules for parameters, state and batches."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gems_jax.leaf_path import leaf_path
from gems_jax.sharding import state_sharding
from gems_jax.training.config import MeshConfig

PyTree = Any
Axis = str | tuple[str, ...] | None

AXES = ("data", "fsdp", "tensor")
# Path pattern -> mesh axes of a parameter's last axes; the first that matches holds. A layer's first products are
# split by output and its last one by input, so that between them nothing travels over `tensor`.
RULES: tuple[tuple[str, tuple[Axis, ...]], ...] = (
    (r"relative_bias", ()),
    (r"(^|/)(o|wo|down)/kernel$", ("tensor", "fsdp")),
    (r"kernel$", ("fsdp", "tensor")),
    (r"(embedding|head)/embedding$", ("tensor", "fsdp")),
    (r"", ()),
)
# Batches are [T, B, ...]: rows over every axis that does not split the products themselves.
BATCH = PartitionSpec(None, ("data", "fsdp"))


def make_mesh(config: MeshConfig | None = None) -> Mesh:
    """All devices of all processes as ``data x fsdp x tensor``; one device is a mesh of one.

    Raises:
      ValueError: ``fsdp * tensor`` does not divide the number of devices.

    Example:
      >>> make_mesh().axis_names
      ('data', 'fsdp', 'tensor')
    """
    config = config or MeshConfig()
    model = config.fsdp * config.tensor
    devices = jax.device_count()
    if min(config.fsdp, config.tensor) < 1 or devices % model:
        raise ValueError(
            f"mesh.fsdp={config.fsdp} times mesh.tensor={config.tensor} must divide the {devices} devices there are"
        )
    shape = (devices // model, config.fsdp, config.tensor)
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def spec_of(path: str, shape: tuple[int, ...], sizes: Mapping[str, int]) -> PartitionSpec:
    """A parameter's place by `RULES`; an axis that the mesh does not divide is not split.

    Example:
      >>> sizes = {"fsdp": 4, "tensor": 2}
      >>> tuple(spec_of("decoder/block/mlp/wo/kernel", (12, 64, 32), sizes))
      (None, 'tensor', 'fsdp')
      >>> tuple(spec_of("decoder/block/mlp/wo/kernel", (12, 63, 32), sizes))
      (None, None, 'fsdp')
    """
    axes = next(axes for pattern, axes in RULES if re.search(pattern, path))
    if len(axes) > len(shape):
        return PartitionSpec()
    padded = (None,) * (len(shape) - len(axes)) + axes
    return PartitionSpec(
        *(a if isinstance(a, str) and n % sizes[a] == 0 else None for a, n in zip(padded, shape, strict=True))
    )


def param_sharding(params: PyTree, mesh: Mesh) -> PyTree:
    """A ``NamedSharding`` for every parameter, by `RULES`."""
    sizes = dict(zip(mesh.axis_names, mesh.devices.shape, strict=True))
    return jax.tree_util.tree_map_with_path(
        lambda path, x: NamedSharding(mesh, spec_of(leaf_path(path), tuple(x.shape), sizes)), params
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def optimiser_sharding(tx: Any, params: PyTree) -> PyTree:
    """The optimiser state beside the parameters it belongs to, which have their places."""
    return state_sharding(tx, params)


def on_every_device(value: Any, mesh: Mesh) -> jax.Array:
    """The same small array of every process on all devices, without any communication."""
    array = np.asarray(value)
    return jax.make_array_from_process_local_data(replicated(mesh), array, array.shape)


def gathered(tree: PyTree, mesh: Mesh) -> PyTree:
    """The arrays of a mesh as whole arrays of this process alone; every process of the mesh must call it."""
    if not all(x.is_fully_replicated for x in jax.tree.leaves(tree)):
        tree = jax.jit(lambda t: t, out_shardings=replicated(mesh))(tree)
    return jax.tree.map(lambda x: x.addressable_data(0), tree)
