"""A run's model and optimiser as shapes, from files that hold no weights."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from gems_jax.config.run import Config
from gems_jax.models import from_config
from gems_jax.training.pretrain import model_shape


def abstract_model(config: Config, items: int) -> Any:
    """The model that trains, grown by ``items`` tokens: shapes alone.

    Args:
      config: ``model.path`` is a Hugging Face folder, of which ``config.json`` is read; where it is missing and
        ``model.from_text`` is set, section ``pretrain`` says what will be there.
      items: added tokens, unless the folder's model has some.

    Raises:
      FileNotFoundError: no model, and none is to be pretrained.
    """
    folder = Path(config.model.path)
    if (folder / "config.json").is_file():
        shape = nnx.eval_shape(lambda: from_config(folder, jax.random.key(0))).config
    elif config.model.from_text:
        shape = model_shape(config.pretrain, config.pretrain.vocab_size)
    else:
        raise FileNotFoundError(
            f"model.path {folder} holds no model (config.json): name a Hugging Face folder by --model.path, or a "
            "configuration by --config"
        )
    dtype = config.model.dtype
    shape = dataclasses.replace(shape, num_added_tokens=shape.num_added_tokens or items, dtype=dtype, param_dtype=dtype)
    return nnx.eval_shape(lambda: from_config(shape, jax.random.key(0)))
