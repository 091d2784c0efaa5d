"""The compiled step of a run on a mesh of any devices, from shapes alone: no array is ever made."""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gems_jax.config.run import Config
from gems_jax.models import from_config
from gems_jax.training.build import check_batch_rows, training_model
from gems_jax.training.distributed.mesh import batch_sharding, on_mesh, optimiser_sharding, replicated, task_axis
from gems_jax.training.estimate.abstract import ANSWER, abstract_null_space, batch_lengths, sharded, sharded_params
from gems_jax.training.losses import task_loss
from gems_jax.training.optimiser.chain import is_constrained, make_optimiser, null_space_side
from gems_jax.training.optimiser.rates import GROUPS
from gems_jax.training.step import Control, make_step
from gems_jax.training.task_gradients import batches_an_update, projects
from gems_jax.training.trainable import split_model
from gems_jax.types import PyTree


class AbstractStep(NamedTuple):
    """A training step and the shapes, types and shardings of its arguments.

    Attributes:
      step: under ``jax.jit``.
      params, state, frozen, batch, control: see `gems_jax.training.step.make_step`.
      platform: whose choices are made.
    """

    step: Any
    params: PyTree
    state: PyTree
    frozen: PyTree
    batch: PyTree
    control: Control
    platform: str

    def compile(self) -> Any:
        """The compiled step, ``jax.stages.Compiled``."""
        with for_platform(self.platform):
            return self.step.lower(self.params, self.state, self.frozen, self.batch, self.control).compile()


def abstract_step(
    model_config: Any, config: Config, mesh: Mesh, platform: str, tasks: tuple[str, ...] = ("rec", "src"),
    protected: float = 0.5,
) -> AbstractStep:  # fmt: skip
    """The training step of `gems_jax.training.compile.compile_step` on a mesh.

    Args:
      model_config: a `T5Config` or `DecoderConfig`, item tokens included.
      config: of the run; its sections ``train``, ``gems``, ``lora`` and ``items`` hold.
      mesh: of `gems_jax.training.distributed.mesh.make_mesh`; its devices need not exist.
      platform: ``"tpu"``, ``"gpu"`` or ``"cpu"``, whose choices are made.
      tasks: names.
      protected: share of each input's directions in the null space's factors.

    Returns:
      One step (one part of it with ``train.accumulate``), inputs of ``items.max_length`` tokens; parameters and state
      are donated.

    Raises:
      ValueError: the rows cannot be split over the mesh; general text is a task, whose rows are others.
    """
    train = config.train
    if train.accumulate < 1 or train.batch_size % train.accumulate:
        raise ValueError(
            f"train.batch_size {train.batch_size} must be divisible by train.accumulate {train.accumulate}"
        )
    if train.text_task != "none":
        raise ValueError(f"steps with train.text_task {train.text_task} are not planned; set it to none")
    check_batch_rows(config, mesh)
    graph: Any = None

    def parts() -> tuple[PyTree, PyTree]:
        nonlocal graph
        model = training_model(from_config(model_config, jax.random.key(0)), config)
        graph, params, frozen = split_model(model, config)
        return params, frozen

    params, frozen = (sharded_params(tree, mesh) for tree in jax.eval_shape(parts))
    loss = task_loss(graph, train.loss_vocabulary, ANSWER, train.loss_chunk)
    projected = projects(config, params)
    batch = _batch(model_config, config, len(tasks), batches_an_update(train, projected), mesh)
    null_space = None
    if is_constrained(config):
        one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[-2:], x.dtype), batch)
        null_space = abstract_null_space(loss, params, frozen, one, protected, null_space_side(config))
    tx = make_optimiser(config, len(tasks), null_space, projected)
    sharding = jax.tree.map(lambda x: x.sharding, params)
    step = make_step(loss, train, tx, tasks, null_space, task_axis(mesh), sharding, projected)
    with for_platform(platform):
        where = optimiser_sharding(tx, params)
        state = jax.tree.map(sharded, jax.eval_shape(tx.init, params), where)
        jitted = jax.jit(on_mesh(step, mesh), donate_argnums=(0, 1), out_shardings=(sharding, where, replicated(mesh)))
    return AbstractStep(jitted, params, state, frozen, batch, _control(mesh), platform)


@contextlib.contextmanager
def for_platform(platform: str) -> Iterator[None]:
    """Programs traced inside make the choices they would make where that platform is the default one."""
    with mock.patch.object(jax, "default_backend", return_value=platform):
        yield


def _batch(
    model_config: Any, config: Config, tasks: int, an_update: int, mesh: Mesh
) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch of `gems_jax.data.batching.batches.make_batch`, tasks stacked: ``[tasks, rows, tokens]``, or in parts."""
    train = config.train
    parts = () if an_update == train.accumulate else (train.accumulate,)
    where = batch_sharding(mesh, bool(parts))
    return {
        name: jax.ShapeDtypeStruct((tasks, *parts, train.batch_size // train.accumulate, n), jnp.int32, sharding=where)
        for name, n in batch_lengths(model_config, config.items.max_length).items()
    }


def _control(mesh: Mesh) -> Control:
    whole = replicated(mesh)
    number = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
    stops = jax.ShapeDtypeStruct((mesh.size,), jnp.int32, sharding=NamedSharding(mesh, PartitionSpec(mesh.axis_names)))
    measure = jax.ShapeDtypeStruct((), jnp.bool_, sharding=whole)
    rates = jax.ShapeDtypeStruct((len(GROUPS),), jnp.float32, sharding=whole)
    return Control(number, number, measure, stops, rates, jax.ShapeDtypeStruct((), jnp.uint32, sharding=whole))
