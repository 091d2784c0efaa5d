"""The compiled step of a run on a mesh of any devices, from shapes alone: no array is ever made."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gems_jax.capture import kernel_inputs
from gems_jax.directions import Factor
from gems_jax.models import DecoderConfig, from_config
from gems_jax.moment_pass import kernel_specs
from gems_jax.null_space import NullSpace
from gems_jax.training.build import check_rows, training_model
from gems_jax.training.compiled import is_constrained
from gems_jax.training.config import Config, MeshConfig
from gems_jax.training.layout import (
    batch_sharding,
    make_mesh,
    on_mesh,
    optimiser_sharding,
    param_sharding,
    replicated,
    task_axis,
)
from gems_jax.training.losses import task_loss
from gems_jax.training.optimiser import make_optimiser, schedule
from gems_jax.training.parts import split_model
from gems_jax.training.step import Control, make_step

PyTree = Any
# A row's label tokens: an item, whose identifier is one token, and the end token.
ANSWER = 2


@dataclasses.dataclass(frozen=True)
class Zeros:
    """The description of an array; zeros where a traced function asks for its values."""

    shape: tuple[int, ...]
    dtype: Any = jnp.dtype("float32")

    def __jax_array__(self) -> jax.Array:
        return jnp.zeros(self.shape, self.dtype)


class AbstractStep(NamedTuple):
    """A training step and the shapes, types and places of its arguments.

    Attributes:
      step: under ``jax.jit``.
      params, state, rest, batch, control: see `gems_jax.training.step.make_step`.
      platform: whose choices are made.
    """

    step: Any
    params: PyTree
    state: PyTree
    rest: PyTree
    batch: PyTree
    control: Control
    platform: str

    def compile(self) -> Any:
        """The compiled step, ``jax.stages.Compiled``."""
        with for_platform(self.platform):
            return self.step.lower(self.params, self.state, self.rest, self.batch, self.control).compile()


def abstract_step(
    model_config: Any, config: Config, mesh: Mesh, platform: str, tasks: tuple[str, ...] = ("rec", "src"),
    protected: float = 0.5,
) -> AbstractStep:  # fmt: skip
    """The training step of `gems_jax.training.compiled.compile_step` on a mesh.

    Args:
      model_config: a `T5Config` or `DecoderConfig`, item tokens included.
      config: of the run; its sections ``train``, ``gems``, ``lora`` and ``items`` hold.
      mesh: see `device_mesh`; its devices need not exist.
      platform: ``"tpu"``, ``"gpu"`` or ``"cpu"``, whose choices are made.
      tasks: names.
      protected: share of each input's directions in the null space's factors.

    Returns:
      One step (one part of it with ``train.accumulate``), inputs of ``items.max_length`` tokens; parameters and state
      are donated.

    Raises:
      ValueError: the rows cannot be split over the mesh.
    """
    train = config.train
    if train.accumulate < 1 or train.batch_size % train.accumulate:
        raise ValueError(
            f"train.batch_size {train.batch_size} must be divisible by train.accumulate {train.accumulate}"
        )
    check_rows(config, mesh)
    graph: Any = None

    def parts() -> tuple[PyTree, PyTree]:
        nonlocal graph
        model = training_model(from_config(model_config, jax.random.key(0)), config)
        graph, params, rest = split_model(model, config)
        return params, rest

    params, rest = (_placed(tree, mesh) for tree in jax.eval_shape(parts))
    loss = task_loss(graph, train.loss_vocabulary, ANSWER, train.loss_chunk)
    shape = (len(tasks), train.batch_size // train.accumulate, config.items.max_length)
    batch = _batch(model_config, shape, mesh)
    null_space = None
    if is_constrained(config):
        one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), batch)
        null_space = _null_space(lambda p, rest_batch: loss(p, *rest_batch), params, (rest, one), protected)
    tx = make_optimiser(config, len(tasks), null_space)
    rate = schedule(train, train.learning_rate)
    step = make_step(loss, train, tx, tasks, rate, null_space, task_axis(mesh))
    with for_platform(platform):
        where = optimiser_sharding(tx, params)
        state = jax.tree.map(_place, jax.eval_shape(tx.init, params), where)
        places = jax.tree.map(lambda x: x.sharding, params)
        jitted = jax.jit(on_mesh(step, mesh), donate_argnums=(0, 1), out_shardings=(places, where, replicated(mesh)))
    return AbstractStep(jitted, params, state, rest, batch, _control(mesh), platform)


def device_bytes(tree: PyTree) -> int:
    """Bytes of a tree on each device.

    Example:
      >>> device_bytes(jax.numpy.zeros((2, 3)))
      24
    """
    return sum(bytes_of(leaf) for leaf in jax.tree.leaves(tree))


def bytes_of(leaf: Any) -> int:
    """Bytes of an array's part on each device."""
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


@contextlib.contextmanager
def for_platform(platform: str) -> Iterator[None]:
    """Programs traced inside make the choices they would make where that platform is the default one."""
    with mock.patch.object(jax, "default_backend", return_value=platform):
        yield


def device_mesh(devices: Sequence[Any], sizes: MeshConfig) -> Mesh:
    """`gems_jax.training.layout.make_mesh`, of other devices than this process has.

    Raises:
      ValueError: sizes that do not divide the number of devices.

    Example:
      >>> device_mesh(jax.devices()[:1], MeshConfig()).axis_names
      ('data', 'fsdp', 'tensor')
    """
    of_these = functools.partial(jax.make_mesh, devices=list(devices))
    with mock.patch.multiple(jax, device_count=lambda: len(devices), make_mesh=of_these):
        return make_mesh(sizes)


def _place(x: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def _placed(tree: PyTree, mesh: Mesh) -> PyTree:
    return jax.tree.map(_place, tree, param_sharding(tree, mesh))


def _null_space(apply: Any, params: PyTree, batch: PyTree, protected: float) -> NullSpace:
    """Factors of the shapes that a null space of these parameters has, for every distinct input of the kernels."""
    found = kernel_inputs(apply, params, batch, kernel_specs(params))
    factors = {}
    for entry in found.inputs:
        # The thinner of two bases is kept.
        columns = max(1, round(min(protected, 1 - protected) * entry.dim))
        basis: Any = Zeros((*entry.stack, entry.dim, columns))
        kept = np.full(entry.stack, round(protected * entry.dim))
        factors[entry.name] = Factor(basis, protected > 0.5, kept, np.zeros(entry.stack))
    return NullSpace(factors, found.names())


def _batch(model_config: Any, shape: tuple[int, int, int], mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch of `gems_jax.data.batches.make_batch`, tasks stacked: ``[tasks, rows, tokens]``."""
    *lead, inputs = shape
    if isinstance(model_config, DecoderConfig):
        lengths = dict.fromkeys(("input_ids", "attention_mask", "labels", "label_mask"), inputs)
    else:
        lengths = {"input_ids": inputs, "attention_mask": inputs}
        lengths |= dict.fromkeys(("decoder_input_ids", "labels", "label_mask"), ANSWER)
    where = batch_sharding(mesh)
    return {name: jax.ShapeDtypeStruct((*lead, n), jnp.int32, sharding=where) for name, n in lengths.items()}


def _control(mesh: Mesh) -> Control:
    whole = replicated(mesh)
    number = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
    stops = jax.ShapeDtypeStruct((mesh.size,), jnp.int32, sharding=NamedSharding(mesh, PartitionSpec(mesh.axis_names)))
    return Control(number, number, jax.ShapeDtypeStruct((), jnp.bool_, sharding=whole), stops)
