"""The model that a run has tuned, read from its work directory, and the catalogue that it ranks now."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gems_jax.config.run import Config
from gems_jax.items.tokens import ItemIndex
from gems_jax.training.run_assets import run_assets
from gems_jax.training.stages import Assets
from gems_jax.training.trainable import join_model, split_model
from gems_jax.training.workdir import edits as edits_file
from gems_jax.training.workdir.assets import check_record, read_record, record_of
from gems_jax.training.workdir.checkpoints import Checkpoints
from gems_jax.training.workdir.edits import CatalogueEdits, digest_of_run, read_edits


class TunedRun(NamedTuple):
    """A tuned run as its commands use it.

    Args:
      base: the base model, before items were added.
      assets: with the catalogue as it was edited since.
      model: the tuned one.
      edits: of the catalogue.
    """

    base: Any
    assets: Assets
    model: Any
    edits: CatalogueEdits


def load_run(config: Config, workdir: Path) -> TunedRun:
    """A tuned run; says so where its catalogue was edited since.

    Raises:
      FileNotFoundError, ValueError: as `load_tuned`; edits are damaged, or of another run.
    """
    base, assets, _ = run_assets(config, workdir, tuned=True)
    model = load_tuned(config, assets, workdir)
    edits = edits_of(workdir)
    if edits.edits:
        print(f"items: {edits.notice()} ({workdir / edits_file.NAME})")
    return TunedRun(base, edited(assets, edits), model, edits)


def load_tuned(config: Config, assets: Assets, workdir: Path) -> Any:
    """The model of a work directory's last or best checkpoint, as ``evaluate.checkpoint`` says.

    Args:
      config: of the run.
      assets: of the run, with the catalogue that it was tuned on.
      workdir: of the run.

    Raises:
      FileNotFoundError: no such checkpoint.
      ValueError: it is damaged, or was tuned on another catalogue, tokenizer or base model.
    """
    check_record(record_of(config, assets, training=False), workdir)
    graphdef, params, frozen = split_model(assets.model, config)
    with Checkpoints(workdir / "checkpoints", writes=False) as checkpoints:
        params = checkpoints.restore_params(params, config.evaluate.checkpoint)
    return join_model(graphdef, params, frozen)


def edits_of(workdir: Path) -> CatalogueEdits:
    """The edits of a run's catalogue, none where there are none.

    Raises:
      ValueError: they are damaged, or of a run with another catalogue or other identifiers.
    """
    edits, record = read_edits(workdir), read_record(workdir)
    run = "" if record is None else digest_of_run(record.items, record.identifiers)
    if edits is None:
        return CatalogueEdits(run)
    if edits.run != run:
        raise ValueError(
            f"{workdir / edits_file.NAME} edits a catalogue or identifiers that {workdir} was not tuned with: remove "
            "it, and edit the catalogue anew"
        )
    return edits


def edited(assets: Assets, edits: CatalogueEdits) -> Assets:
    """Assets whose catalogue has the items that were added behind those of training, and ranks none that was removed.

    Args:
      assets: of the run, as it was tuned.
      edits: of its catalogue.

    Raises:
      ValueError: an added item has tokens that the run has not, or those of another item.
    """
    if not edits.edits:
        return assets
    added = edits.added()
    old, vocabulary = assets.items.token_ids, assets.tokenizer.get_vocab()
    rows = np.full((len(old) + len(added), max([old.shape[1], *(len(one.tokens) for one in added)])), -1, np.int32)
    rows[: len(old), : old.shape[1]] = old
    for number, one in enumerate(added, len(old)):
        for column, token in enumerate(one.tokens):
            if token not in vocabulary:
                raise ValueError(f"added item {one.item_id!r} has token {token}, which this run has not")
            rows[number, column] = vocabulary[token]
    items = [*assets.dataset.items, *(one.item for one in added)]
    gone = edits.removed()
    removed = frozenset(number for number, item in enumerate(items) if item.item_id in gone)
    dataset = dataclasses.replace(assets.dataset, items=items)
    return dataclasses.replace(assets, dataset=dataset, items=ItemIndex(rows, removed, assets.items.shared))
