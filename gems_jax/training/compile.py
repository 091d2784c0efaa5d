"""A model's training step on a mesh: parameters, optimiser state and the compiled step that belongs to them."""

import dataclasses
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from gems_jax.config.methods import METHODS
from gems_jax.config.run import Config
from gems_jax.config.text_task import trained_tasks
from gems_jax.config.train import TrainConfig
from gems_jax.null_space.space import NullSpace
from gems_jax.training.distributed.mesh import (
    on_mesh,
    optimiser_sharding,
    param_sharding,
    replicated,
    task_axis,
)
from gems_jax.training.losses import task_loss
from gems_jax.training.optimiser.chain import is_constrained, make_optimiser
from gems_jax.training.optimiser.factors import initial_opt_state
from gems_jax.training.step import make_step
from gems_jax.training.task_gradients import projects
from gems_jax.training.text_task import text_loss
from gems_jax.training.trainable import split_model
from gems_jax.types import PyTree


class Compiled(NamedTuple):
    """A compiled step and the arrays on the mesh that it works on.

    Attributes:
      mesh: of all devices.
      tx: the optimiser.
      null_space: that updates are kept in, or ``None``.
      params, opt_state, frozen: what trains, the optimiser's state, what does not train; on the mesh.
      step: ``(params, opt_state, frozen, batch, control) -> (params, opt_state, metrics)`` under ``jax.jit``;
        parameters and state are donated and come back where they were.
    """

    mesh: Mesh
    tx: Any
    null_space: NullSpace | None
    params: PyTree
    opt_state: PyTree
    frozen: PyTree
    step: Callable[..., tuple[PyTree, PyTree, dict[str, jax.Array]]]


# Of runs that differ in nothing a program depends on: optimiser and compiled step, see `compile_step`.
Programs = dict[Hashable, tuple[Any, Any]]


def compile_step(
    mesh: Mesh,
    model: Any,
    config: Config,
    tasks: tuple[str, ...],
    null_space: NullSpace | None,
    answer_length: int | None = None,
    programs: Programs | None = None,
) -> Compiled:
    """Puts a model on a mesh and makes its training step.

    Args:
      mesh: of `gems_jax.training.distributed.mesh.make_mesh`, or one with its axes.
      model: as it computes in training; it stays as it is.
      config: of the run.
      tasks: names of those that are ranked, in the order of the task axis; general text comes behind them where the
        configuration makes it a task.
      null_space: of the base model, or ``None``.
      answer_length: most label tokens a row has, see `gems_jax.training.losses.answer_hidden`.
      programs: of former runs of this process: what is there is used, what is not is added. Runs share a program that
        differ in learning rates, seed and what is logged alone.

    Raises:
      ValueError: options that cannot be, or do not go together; a mesh with axes of type ``Explicit``.
    """
    train = config.train
    axis = task_axis(mesh)
    if axis is not None and len(tasks) % mesh.shape[axis]:
        raise ValueError(f"mesh.{axis}={mesh.shape[axis]} must divide the {len(tasks)} tasks there are")
    graphdef, params, frozen = split_model(model, config)
    sharding = param_sharding(params, mesh)
    # Copies: the step donates its parameters, and the caller's model is compared with afterwards.
    params = jax.device_put(jax.tree.map(jnp.copy, params), sharding)
    frozen = jax.device_put(frozen, param_sharding(frozen, mesh))
    constraint = null_space if is_constrained(config) else None
    # The null space by its identity: it stays as it is, and with the program it is kept alive.
    key = (
        mesh,
        graphdef,
        _decisive(train),
        config.gems,
        config.lora,
        config.orbit,
        tasks,
        id(null_space),
        answer_length,
    )
    known = programs.get(key) if programs is not None else None
    trained = trained_tasks(train, tasks)
    tx = known[0] if known else make_optimiser(config, len(trained), null_space, projects(config, params))
    state_sharding = optimiser_sharding(tx, params)
    if known:
        jitted = known[1]
    else:
        loss_fn = task_loss(graphdef, train.loss_vocabulary, answer_length, train.loss_chunk)
        text = text_loss(graphdef, train)
        step = make_step(loss_fn, train, tx, trained, constraint, axis, sharding, projects(config, params), text)
        jitted = jax.jit(
            on_mesh(step, mesh), donate_argnums=(0, 1), out_shardings=(sharding, state_sharding, replicated(mesh))
        )
        if programs is not None:
            programs[key] = (tx, jitted)
    bound = jitted
    if train.text_task == "distill":  # an argument, since a constant would be copied into the program
        base = jax.device_put(jax.tree.map(jnp.copy, params), sharding)
        bound = lambda *operands: jitted(*operands, base)  # noqa: E731
    opt_state = initial_opt_state(tx, params, state_sharding, constraint)
    return Compiled(mesh, tx, constraint, params, opt_state, frozen, bound)


def _decisive(train: TrainConfig) -> TrainConfig:
    """The fields that a step's program depends on, the others as they are by default."""
    free = ["seed", "log_every", "eval_every", "eval_rows", "metric", "patience", "checkpoint_every"]
    free += ["keep_checkpoints", "max_non_finite", "hang_after", "profile", "writers"]
    if not METHODS[train.method].own_rates:
        free += ["learning_rate", "item_learning_rate", "other_learning_rate"]
    standard = TrainConfig()
    return dataclasses.replace(train, **{name: getattr(standard, name) for name in free})
