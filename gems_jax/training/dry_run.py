"""A run looked at before it is started: its configuration, shapes, memory and first batch. Nothing is written."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import yaml

from gems_jax.config.run import Config
from gems_jax.config.text_task import TEXT_TASK, trained_tasks
from gems_jax.data.dataset import storage
from gems_jax.models.hf.tokenizer import load_tokenizer
from gems_jax.null_space.space import NullSpace
from gems_jax.staging import is_remote
from gems_jax.training.build import batches_of
from gems_jax.training.doctor import fit
from gems_jax.training.estimate.memory import assumed_null_space
from gems_jax.training.estimate.shape import abstract_model
from gems_jax.training.identify import is_made, is_missing
from gems_jax.training.monitoring.start_table import start_table
from gems_jax.training.optimiser.chain import make_optimiser, needs_null_space
from gems_jax.training.stages import ensure_data, index_items
from gems_jax.training.task_gradients import batches_an_update, projects
from gems_jax.training.text_task import TextRows
from gems_jax.training.tokens import encode
from gems_jax.training.trainable import split_model
from gems_jax.training.unknown_text import unknown_notes
from gems_jax.training.workdir.assets import in_run_order
from gems_jax.training.workdir.files import as_json
from gems_jax.types import Batch

# Fields of section ``items`` that say how identifiers are made, and where.
_IF_MADE = ("levels", "codebook_size", "capacity_factor", "path")


def dry_run(config: Config, workdir: Path) -> str:
    """What `gems-jax train` would do, in words; weights are not read and no step is compiled.

    Args:
      config: of the run.
      workdir: of the run; if it has begun, items keep its numbers.

    Raises:
      FileNotFoundError: data or base model are missing; making them would write.
    """
    found = {f"data.dir {config.data.dir}": _is_prepared(config), f"model.path {config.model.path}": _has_model(config)}
    found[f"items.path {config.items.path}"] = not is_missing(config)
    for what, there in found.items():
        if not there:
            raise FileNotFoundError(
                f"--dry-run writes nothing, and {what} is not there yet: run gems-jax prepare --all with the same "
                "configuration first"
            )
    # Files of tokens are a cache, which would be written.
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, tokens=None))
    dataset = in_run_order(ensure_data(config), workdir, config.data.dir)
    bare = abstract_model(config, 0)
    tokenizer = load_tokenizer(Path(config.model.path), bare.config.vocab_size)
    items = index_items(config, dataset, tokenizer, bare.config.vocab_size)
    added = len(np.unique(items.token_ids[items.token_ids >= bare.config.vocab_size]))
    model = abstract_model(config, added)
    tables = {task: dataset.table("train", task) for task in dataset.tasks}
    titles = dataset.titles()
    encoded = {task: encode(config, t, tokenizer, items, model.layout, titles) for task, t in tables.items()}
    graph, params, frozen = split_model(model, config)
    text = None if config.train.text_task == "none" else TextRows(config, tokenizer, model.layout)
    projected = projects(config, params)
    an_update = batches_an_update(config.train, projected)
    batches = batches_of(config, encoded, model, text=text, an_update=an_update)
    batch = next(batches)
    batches.close()
    null_space = _null_space(config)
    assumed = null_space or assumed_null_space(config, model.config, graph, params, frozen)
    tx = make_optimiser(config, len(trained_tasks(config.train, tuple(tables))), assumed, projected)
    return "\n".join(
        [
            yaml.safe_dump(_with_effect(config), sort_keys=False),
            start_table(config, tx, params, frozen, encoded, null_space, text),
            *unknown_notes(config, dataset, tokenizer),
            *_about(config, null_space),
            *fit(config, added, jax.devices()),
            "batch: " + ", ".join(f"{name} {list(x.shape)} {x.dtype}" for name, x in batch.items()),
            *(line for t, task in enumerate(tables) for line in _first_row(batch, t, task, tokenizer)),
            *(_first_text(text, tokenizer) if text is not None else []),
        ]
    )


def _with_effect(config: Config) -> dict[str, Any]:
    """The configuration without fields of identifiers that this run does not make."""
    values = as_json(config)
    if not is_made(config):
        values["items"] = {name: value for name, value in values["items"].items() if name not in _IF_MADE}
    return values


def _is_prepared(config: Config) -> bool:
    folder = config.data.dir
    return not is_remote(folder) and storage.is_complete(folder) and storage.is_current(folder)


def _has_model(config: Config) -> bool:
    return (Path(config.model.path) / "config.json").is_file()


def _null_space(config: Config) -> NullSpace | None:
    """The one on file, if the method uses one."""
    there = needs_null_space(config) and (Path(config.null_space.path) / "null_space.json").is_file()
    return NullSpace.load(config.null_space.path) if there else None


def _about(config: Config, null_space: NullSpace | None) -> list[str]:
    if null_space is not None:
        return [f"null space: {config.null_space.path}"]
    if needs_null_space(config):
        return [f"null space: {config.null_space.path} is made first; ranks are shown as if it protected half"]
    return []


def _first_row(batch: Batch, number: int, task: str, tokenizer: Any) -> list[str]:
    """The first row of a task's batch as text, special tokens too, and what the loss is of."""
    row = {name: x[number, 0] for name, x in batch.items()}
    shown = tokenizer.decode(row["input_ids"][row["attention_mask"] == 1])
    answer = tokenizer.decode(row["labels"][row["label_mask"] == 1])
    return [f"{task}, row {int(row['row_index'])}, as the model reads it: {shown}", f"{task}, the answer: {answer}"]


def _first_text(text: TextRows, tokenizer: Any) -> list[str]:
    """The first row of general text, and the tokens that are predicted."""
    row = {name: x[0] for name, x in text.example.items()}
    shown = tokenizer.decode(row["input_ids"][row["attention_mask"] == 1])
    labels = tokenizer.decode(row["labels"][row["label_mask"] == 1])
    return [f"{TEXT_TASK}, row 0, as the model reads it: {shown}", f"{TEXT_TASK}, what is predicted: {labels}"]
