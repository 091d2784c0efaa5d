"""A table of the run that begins: what trains, what the optimiser holds, how much data there is."""

from collections.abc import Mapping
from typing import Any

import jax

from gems_jax.config.methods import METHODS
from gems_jax.config.own_rates import said
from gems_jax.config.run import Config
from gems_jax.data.batching.encoded_table import EncodedTable
from gems_jax.null_space.space import NullSpace
from gems_jax.training.task_gradients import projects
from gems_jax.training.text_task import TextRows
from gems_jax.transform.reports import state_bytes
from gems_jax.types import PyTree


def start_table(
    config: Config,
    tx: Any,
    params: PyTree,
    frozen: PyTree,
    encoded: Mapping[str, EncodedTable],
    ns: NullSpace | None,
    text: TextRows | None = None,
) -> str:
    """Parameters, learning rates, kernels in subspaces with ranks and bytes, optimiser memory, null space, tokens.

    Args:
      config: of the run.
      tx: its optimiser.
      params: what trains.
      frozen: what does not.
      encoded: training tables as tokens, by task.
      ns: the null space that updates are kept in, or ``None``.
      text: rows of general text, where it is a task.

    Returns:
      Lines to print.
    """
    trained, fixed = (sum(x.size for x in jax.tree.leaves(tree) if hasattr(x, "size")) for tree in (params, frozen))
    train = config.train
    lines = [f"train: {train.method}, {trained:,} trained parameters of {trained + fixed:,}, {train.steps:,} steps"]
    lines.append(said(config))
    table = state_bytes(tx, params)
    if METHODS[train.method].low_rank:
        lines.append(str(table))
        lines.append(f"gradients: {'projected' if projects(config, params) else 'full'}")
    else:
        lines.append(f"optimiser state {table.total:,} bytes, {table.total / max(table.adamw, 1):.2f} x AdamW's")
    if ns is not None:
        lines.append(ns.summary())
    for task, one in encoded.items():
        inputs, answers = int(one.lengths().sum()), int(one.answer_lengths().sum())
        epochs = train.steps * train.batch_size / len(one)
        lines.append(
            f"{task}: {len(one):,} rows, {inputs:,} input and {answers:,} label tokens an epoch, {epochs:.1f} epochs"
        )
    if text is not None:
        lines.append(text.summary(train))
    return "\n".join(lines)
