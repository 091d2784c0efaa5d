"""The parts of a run before its first step: model, optimiser, data and the compiled step, on a mesh."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gems_jax.config.checks import check
from gems_jax.config.metric_names import check_metric
from gems_jax.config.run import Config
from gems_jax.config.text_task import trained_tasks
from gems_jax.data.batching.device_batches import DeviceBatches
from gems_jax.data.batching.encoded_table import EncodedTable
from gems_jax.data.batching.pipeline import BatchIterator, task_batches
from gems_jax.evaluation.evaluate import RANKED
from gems_jax.models.mesh_rules import ROW_AXES
from gems_jax.models.params import params_of
from gems_jax.null_space.space import NullSpace
from gems_jax.training.compile import Programs, compile_step
from gems_jax.training.distributed.mesh import batch_sharding, make_mesh, on_every_device, row_part
from gems_jax.training.monitoring.flops import peak_flops, work_of_batch
from gems_jax.training.optimiser.rates import peak_rates
from gems_jax.training.stages import Assets
from gems_jax.training.step import Control
from gems_jax.training.task_gradients import batches_an_update, projects
from gems_jax.training.text_task import TextRows
from gems_jax.types import PyTree


@dataclasses.dataclass
class TrainingRun:
    """A run before its first step.

    Attributes:
      mesh: of all devices.
      tasks: names of those that are ranked, in the order of the task axis.
      trained: names of all that have gradients: these, and general text where it is a task.
      encoded: training tables as tokens.
      text: rows of general text, or ``None`` where it is no task.
      tx: the optimiser.
      null_space: that updates are kept in, or ``None``.
      params, opt_state, frozen: what trains, the optimiser's state, what does not train; on the mesh.
      batches: of this process, on their way to the devices.
      batches_an_update: how many of them an update takes, a step each.
      work: of a batch of this process: tokens, and the model's operations where the devices' peak is known; those of
        the other processes' rows are counted with it.
      step: ``(params, opt_state, frozen, batch, control) -> (params, opt_state, metrics)``, compiled.
      rates, seed: what every step is told, see `gems_jax.training.step.Control`.
    """

    mesh: Mesh
    tasks: tuple[str, ...]
    trained: tuple[str, ...]
    encoded: dict[str, EncodedTable]
    text: TextRows | None
    tx: Any
    null_space: NullSpace | None
    params: PyTree
    opt_state: PyTree
    frozen: PyTree
    batches: DeviceBatches
    batches_an_update: int
    work: Callable[[dict[str, np.ndarray]], tuple[float, float]]
    step: Callable[..., tuple[PyTree, PyTree, dict[str, jax.Array]]]
    rates: jax.Array
    seed: jax.Array

    def control(self, number: int, part: int, measure: bool, stop_code: int) -> Control:
        """The step's control values, on the devices."""
        put = lambda value: on_every_device(value, self.mesh)  # noqa: E731
        codes = np.full(jax.local_device_count(), stop_code, np.int32)
        by_device = NamedSharding(self.mesh, PartitionSpec(self.mesh.axis_names))
        return Control(
            number=put(np.int32(number)),
            part=put(np.int32(part)),
            measure=put(np.bool_(measure)),
            stop=jax.make_array_from_process_local_data(by_device, codes, (jax.device_count(),)),
            rates=self.rates,
            seed=self.seed,
        )


def training_model(model: Any, config: Config) -> Any:
    """The model as it computes in training: dropout, what is computed again, products in ``train.compute_dtype``.

    Raises:
      ValueError: dropout or a choice of what is computed again, which this model does not have.
    """
    train = config.train
    changes: dict[str, Any] = {"dtype": train.compute_dtype or model.config.dtype}
    if train.remat is not None:
        if not hasattr(model.config, "remat"):
            raise ValueError(
                f"train.remat={train.remat!r}: the configuration of a {type(model).__name__} has no field remat; leave "
                "train.remat out"
            )
        changes["remat"] = train.remat
    if hasattr(model.config, "dropout_rate"):
        changes["dropout_rate"] = train.dropout
    elif train.dropout:
        raise ValueError(f"train.dropout={train.dropout}: a {type(model).__name__} has no dropout; set it to 0")
    return type(model).from_params(dataclasses.replace(model.config, **changes), params_of(model))


def token_roles(model: Any) -> dict[str, int]:
    """Ids that batches need.

    Raises:
      ValueError: the model has no end token.
    """
    config = model.config
    if config.eos_token_id is None:
        raise ValueError("the model has no end token (eos_token_id in config.json), which every answer ends with")
    roles = {"pad_token_id": config.pad_token_id or 0, "eos_token_id": config.eos_token_id}
    if hasattr(config, "decoder_start_token_id"):
        roles["decoder_start_token_id"] = config.decoder_start_token_id
    return roles


def check_batch_rows(config: Config, mesh: Mesh) -> None:
    """Raises ``ValueError`` where the rows of a batch cannot be split over the devices that share them."""
    train = config.train
    asked = {"batch_size": train.batch_size}
    asked |= {"text_task_rows": train.text_task_rows} if train.text_task != "none" else {}
    spread = math.prod(mesh.shape[name] for name in ROW_AXES)
    for name, given in asked.items():
        rows = given // train.accumulate
        if rows % spread == 0:
            continue
        raise ValueError(
            f"train.{name} {given} in {train.accumulate} parts makes {rows} rows a part, which the "
            f"{spread} devices that share them do not divide"
        )


def check_beams(config: Config) -> None:
    """Raises ``ValueError`` where a run could be trained and not evaluated: it keeps `RANKED` items of each row."""
    if config.evaluate.beams < RANKED:
        raise ValueError(
            f"evaluate.beams is {config.evaluate.beams}; it must be at least {RANKED}, the items of each row "
            f"that are ranked and measured (as in hit@{RANKED})"
        )


def batches_of(
    config: Config,
    encoded: dict[str, EncodedTable],
    model: Any,
    index: int = 0,
    parts: int = 1,
    text: TextRows | None = None,
    an_update: int | None = None,
) -> BatchIterator:
    """The batches of a run, or of part ``index`` of the ``parts`` that processes share its rows by.

    Args:
      config: of the run.
      encoded: training tables as tokens, by task.
      model: whose tokens they are; its shapes are enough.
      text: rows of general text, where it is a task.
      an_update: batches that an update takes, ``None``: ``train.accumulate``.
    """
    train = config.train
    return task_batches(
        encoded,
        train.batch_size // (an_update or train.accumulate),
        config.items.max_length,
        train.seed,
        process_index=index,
        process_count=parts,
        length_buckets=config.items.length_buckets,
        length_window=config.items.length_window,
        prefetch=config.data.prefetch,
        threads=config.data.threads,
        sampling=train.sampling,
        temperature=train.temperature,
        beside=None if text is None else text.beside(index, parts),
        **token_roles(model),
    )


def build(
    config: Config, assets: Assets, null_space: NullSpace | None, programs: Programs | None = None
) -> TrainingRun:
    """Makes a run; nothing is written.

    Args:
      config: of the run.
      assets: model, data, items.
      null_space: of the base model, or ``None``.
      programs: see `gems_jax.training.compile.compile_step`.

    Raises:
      ValueError: options that cannot be, or do not go together.
    """
    check(config)
    train = config.train
    tables = {task: assets.dataset.table("train", task) for task in assets.dataset.tasks}
    tasks = tuple(tables)
    check_metric(train.metric, train.patience, train.eval_every, tasks)
    encoded = {task: assets.encode(config, table) for task, table in tables.items()}
    mesh = make_mesh(config.mesh)
    check_batch_rows(config, mesh)
    row_index, row_parts = row_part(mesh)
    answer_length = assets.items.token_ids.shape[1] + 1
    model = training_model(assets.model, config)
    made = compile_step(mesh, model, config, tasks, null_space, answer_length, programs)
    text = None if train.text_task == "none" else TextRows(config, assets.tokenizer, assets.model.layout)
    an_update = batches_an_update(train, projects(config, made.params))
    parts = train.accumulate // an_update
    batches = batches_of(config, encoded, assets.model, row_index, row_parts, text, an_update)
    return TrainingRun(
        **made._asdict(),
        tasks=tasks,
        trained=trained_tasks(train, tasks),
        encoded=encoded,
        text=text,
        batches=DeviceBatches(batches, batch_sharding(mesh, parts > 1), parts=parts),
        batches_an_update=an_update,
        work=functools.partial(work_of_batch, assets.model, parts=row_parts, count_work=peak_flops() is not None),
        rates=on_every_device(peak_rates(train), mesh),
        seed=on_every_device(np.uint32(train.seed), mesh),
    )
