"""Defaults of ``generate`` in transformers: the file ``generation_config.json`` of a folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gems_jax.models.config_checks import read_object

NAME = "generation_config.json"
# How long an answer is follows from the items; the first would have transformers take other values than the file's.
_REPLACED = ("_from_model_config", "max_length", "min_length", "max_new_tokens", "min_new_tokens")


def read_generation(folder: Path) -> dict[str, Any]:
    """The values of a folder's file; none where there is no file.

    Raises:
      ValueError: the file is damaged or too large.
    """
    path = folder / NAME
    return read_object(path) if path.is_file() else {}


def generation_for_items(base: Mapping[str, Any], config: Any, answer_length: int) -> dict[str, Any]:
    """The values with which a tuned model generates an item: those of the base, with the tokens that end an answer.

    Args:
      base: values of the base model's file.
      config: of the tuned model.
      answer_length: tokens of an item and the end token.

    Example:
      >>> import types
      >>> config = types.SimpleNamespace(eos_token_id=2, pad_token_id=0)
      >>> generation_for_items({"eos_token_id": [2, 5], "top_k": 20, "max_length": 9}, config, 3)
      {'eos_token_id': [2, 5], 'top_k': 20, 'pad_token_id': 0, 'max_new_tokens': 3}
    """
    written = base.get("eos_token_id")
    more: Sequence[Any] = written if isinstance(written, list) else [] if written is None else [written]
    stops = list(getattr(config, "stop_ids", ())) or [config.eos_token_id]
    stops += [token for token in more if token not in stops]
    roles = {name: getattr(config, name, None) for name in ("bos_token_id", "decoder_start_token_id", "pad_token_id")}
    values = {key: value for key, value in base.items() if key not in _REPLACED}
    values |= {name: token for name, token in roles.items() if token is not None and values.get(name) is None}
    return values | {"eos_token_id": stops if len(stops) > 1 else stops[0], "max_new_tokens": answer_length}
