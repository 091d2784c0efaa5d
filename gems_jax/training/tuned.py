"""The model that a run has tuned, read from its work directory."""

from pathlib import Path
from typing import Any

from gems_jax.config.run import Config
from gems_jax.training.stages import Assets
from gems_jax.training.trainable import join_model, split_model
from gems_jax.training.workdir.assets import check_record, record_of
from gems_jax.training.workdir.checkpoints import Checkpoints


def load_tuned(config: Config, assets: Assets, workdir: Path) -> Any:
    """The model of a work directory's last or best checkpoint, as ``evaluate.checkpoint`` says.

    Raises:
      FileNotFoundError: no such checkpoint.
      ValueError: it is damaged, or was tuned on another catalogue, tokenizer or base model.
    """
    check_record(record_of(config, assets, training=False), workdir)
    graphdef, params, frozen = split_model(assets.model, config)
    with Checkpoints(workdir / "checkpoints", writes=False) as checkpoints:
        params = checkpoints.restore_params(params, config.evaluate.checkpoint)
    return join_model(graphdef, params, frozen)
