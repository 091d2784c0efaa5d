"""Where every array of a run lies on the mesh: one table of rules for parameters, state and batches."""

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from gems_jax.config.train import MeshConfig
from gems_jax.leaf_path import leaf_path
from gems_jax.models.mesh_rules import ROW_AXES
from gems_jax.transform.sharding import state_sharding
from gems_jax.types import PyTree

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
# The axis over which tasks are split; a mesh has it where it was asked for.
TASK = "task"


def axis_sizes(config: MeshConfig, data: int) -> dict[str, int]:
    """Sizes of a mesh's axes in their order, with so many devices along ``data``.

    Example:
      >>> axis_sizes(MeshConfig(fsdp=4, task=2), data=1)
      {'data': 1, 'fsdp': 4, 'task': 2, 'tensor': 1}
    """
    task = {TASK: config.task} if config.task != 1 else {}
    return {"data": data, "fsdp": config.fsdp, **task, "tensor": config.tensor}


def make_mesh(config: MeshConfig | None = None, devices: Sequence[Any] | None = None) -> Mesh:
    """All devices of all processes as ``data x fsdp x tensor``; one device is a mesh of one.

    With ``mesh.task`` there is an axis ``task`` behind ``fsdp``: batches, gradients, bases and moments of the tasks
    are on different devices. ``data`` is what is left of the devices.

    Args:
      config: sizes.
      devices: others than those that there are.

    Raises:
      ValueError: the sizes do not divide the number of devices.

    Example:
      >>> make_mesh().axis_names
      ('data', 'fsdp', 'tensor')
    """
    sizes = axis_sizes(config or MeshConfig(), 1)
    count, model = jax.device_count() if devices is None else len(devices), math.prod(sizes.values())
    if min(sizes.values()) < 1 or count % model:
        given = " times ".join(f"mesh.{name}={size}" for name, size in sizes.items() if name != "data")
        raise ValueError(f"{given} must divide the {count} devices there are")
    sizes["data"] = count // model
    kinds = (AxisType.Auto,) * len(sizes)
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=kinds, devices=devices)


def shard_mesh(config: MeshConfig, devices: Sequence[Any]) -> Mesh | None:
    """One axis over all devices of a run that splits its parameters: each then holds its part of every large leaf.

    Args:
      config: sizes of the run's mesh.
      devices: any number of them.

    Returns:
      A mesh of the axis ``shard``; ``None`` where each device holds all parameters.

    Example:
      >>> shard_mesh(MeshConfig(fsdp=2), jax.devices()[:1]) is None
      True
    """
    if config.fsdp * config.tensor == 1 or len(devices) == 1:
        return None
    return Mesh(np.asarray(devices), ("shard",), axis_types=(AxisType.Auto,))


def task_axis(mesh: Mesh | AbstractMesh) -> str | None:
    """The mesh axis of tasks, ``None`` where every device works on all of them."""
    return TASK if TASK in mesh.axis_names else None


def spec_of(path: str, shape: tuple[int, ...], sizes: Mapping[str, int]) -> PartitionSpec:
    """A parameter's partition spec by `RULES`; an axis that the mesh does not divide is not split.

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


def param_sharding(params: PyTree, mesh: Mesh | AbstractMesh) -> PyTree:
    """A ``NamedSharding`` for every parameter, by `RULES`."""
    sizes = dict(mesh.shape)
    return jax.tree_util.tree_map_with_path(
        lambda path, x: NamedSharding(mesh, spec_of(leaf_path(path), tuple(x.shape), sizes)), params
    )


def batch_sharding(mesh: Mesh, in_parts: bool = False) -> NamedSharding:
    """Sharding of arrays ``[T, B, ...]``: rows over `ROW_AXES`, tasks over their axis where the mesh has it.

    ``in_parts``: of ``[T, A, B, ...]``, whose parts no axis splits.
    """
    parts = (None,) if in_parts else ()
    return NamedSharding(mesh, PartitionSpec(task_axis(mesh), *parts, ROW_AXES))


def row_part(mesh: Mesh, process: int | None = None) -> tuple[int, int]:
    """Which part of a batch's rows a process provides, and of how many: those that its devices work on.

    Processes whose devices share rows (``tensor`` goes over both) provide the same ones.

    Args:
      mesh: of `make_mesh`.
      process: its index; ``None``: this one.

    Raises:
      ValueError: devices lie on the mesh so that no such parts are there.

    Example:
      >>> row_part(make_mesh())
      (0, 1)
    """
    process = jax.process_index() if process is None else process
    rows, tasks = math.prod(mesh.shape[name] for name in ROW_AXES), mesh.shape.get(TASK, 1)
    held: dict[int, set[tuple[int, int]]] = {}
    for (row, task, _), device in np.ndenumerate(mesh.devices.reshape(rows, tasks, -1)):
        held.setdefault(device.process_index, set()).add((row, task))
    parts = sorted({tuple(sorted({row for row, _ in pairs})) for pairs in held.values()})
    sizes = {len(part) for part in parts}
    whole = all(len(pairs) == tasks * len({row for row, _ in pairs}) for pairs in held.values())
    if not whole or len(sizes) > 1 or sum(map(len, parts)) != rows:
        shape = ", ".join(f"{name}={size}" for name, size in mesh.shape.items())
        raise ValueError(
            f"the mesh {shape} gives the {len(held)} processes parts of a batch that overlap or leave out tasks; let "
            "mesh.task times mesh.tensor divide the number of devices of a process, or be a multiple of it without "
            "mesh.task"
        )
    return parts.index(tuple(sorted({row for row, _ in held[process]}))), len(parts)


def on_mesh(function: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """The function, to be compiled, with the mesh known inside: models then say how activations lie on it."""

    @functools.wraps(function)
    def inside(*args: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args)

    return inside


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def optimiser_sharding(tx: Any, params: PyTree) -> PyTree:
    """Sharding of the optimiser state, beside the parameters it belongs to; tasks as in `make_mesh`."""
    mesh = jax.tree.leaves(params)[0].sharding.mesh
    return state_sharding(tx, params, task_axis(mesh))


def on_every_device(value: Any, mesh: Mesh) -> jax.Array:
    """The same small array of every process on all devices, without any communication."""
    array = np.asarray(value)
    return jax.make_array_from_process_local_data(replicated(mesh), array, array.shape)


def gathered(tree: PyTree, mesh: Mesh) -> PyTree:
    """The arrays of a mesh as whole arrays of this process alone; every process of the mesh must call it."""
    if not all(x.is_fully_replicated for x in jax.tree.leaves(tree)):
        tree = jax.jit(lambda t: t, out_shardings=replicated(mesh))(tree)
    return jax.tree.map(lambda x: x.addressable_data(0), tree)
