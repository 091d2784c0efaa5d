"""Models to and from Hugging Face folders: config.json, weights in safetensors and the tokenizer's files."""

import dataclasses
import json
import math
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from gems_jax.first_few import first_few
from gems_jax.linalg.stacks import check_auto
from gems_jax.models.config_checks import MAX_PARAMETERS, read_object, shown
from gems_jax.models.config_options import as_whole
from gems_jax.models.family import ITEM_TABLES, Family
from gems_jax.models.hf.tokenizer import check_tokenizer, load_tokenizer
from gems_jax.models.hf.weights import (
    StoredTensor,
    common_dtype,
    open_tensors,
    read_params,
    same_values,
    stored_shape,
    write_params,
)
from gems_jax.models.layer_stack import is_unstacked
from gems_jax.models.params import param_shapes, params_of
from gems_jax.models.registry import FAMILIES
from gems_jax.staging import fresh_folder

_CONFIG = "config.json"
# Our key in config.json: rows from here on are added items, kept apart from the pretrained ones.
_BASE_VOCAB_SIZE = "gems_base_vocab_size"
_HEAD = "lm_head/embedding"
_TABLE = "token_embedding/embedding"


def load(folder: str | os.PathLike[str], dtype: str | None = None, mesh: Mesh | None = None) -> tuple[Any, Any]:
    """Loads a model and its tokenizer from a Hugging Face folder.

    Weights are read one tensor at a time and put where they belong, so that the host's memory holds one leaf (one
    kernel of all layers) of the model at a time beside what its devices hold.

    Args:
      folder: folder with ``config.json``, ``model.safetensors`` (or its index and parts) and the tokenizer's files.
      dtype: of parameters and computation, ``"float32"`` or ``"bfloat16"``; ``None``: as in the files.
      mesh: devices to put the weights on: kernels are split by output, tables by row over the mesh's last axis
        wherever it divides them; the rest is replicated. ``None``: the default device.

    Returns:
      The model, of the class that ``model_type`` stands for, and the tokenizer.

    Raises:
      FileNotFoundError: if the folder or one of its files is missing.
      ValueError: if the model type or an option is unknown, a file is damaged, a tensor is missing, unknown or
        misshapen, the tokenizer does not belong to the model, or axes of the mesh are of type ``Explicit``.
    """
    if mesh is not None:
        check_auto(mesh)
    folder = _existing_folder(folder)
    family, config = _read_family(_read_json(folder / _CONFIG), folder / _CONFIG)
    tensors = open_tensors(folder)
    try:
        stored_dtype = common_dtype(tensors)
        config = _with_stored_head(config, family, tensors)
        param_dtype = dtype or stored_dtype
        config = dataclasses.replace(config, param_dtype=param_dtype, dtype=param_dtype)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    shapes = param_shapes(family.model, config)
    _check_tensors(config, family, shapes, tensors, folder)
    tokenizer = load_tokenizer(folder, config.vocab_size + config.num_added_tokens)
    check_tokenizer(tokenizer, config, folder)
    params = read_params(shapes, family.weights(config), tensors, mesh)
    return family.model.from_params(config, params), tokenizer


def save(
    model: Any,
    tokenizer: Any,
    folder: str | os.PathLike[str],
    max_file_bytes: int = 5_000_000_000,
    files: Mapping[str, str | bytes] | None = None,
) -> None:
    """Writes a model and its tokenizer as a Hugging Face folder that transformers loads with the same logits.

    Item rows are appended to the pretrained ones; ``config.json`` records where they begin, so that `load` keeps
    them apart again. The tensors have the type of the model's parameters. The folder appears whole or not at all.

    Args:
      model: a model of this package.
      tokenizer: its Hugging Face tokenizer.
      folder: where to write; an earlier model there is replaced.
      max_file_bytes: weights that need more go to several files and their index; one file at a time is held in the
        host's memory.
      files: texts and bytes that are written beside them, by the names of their files.

    Raises:
      ValueError: if the tokenizer does not belong to the model, the model was made by `unstacked`, or the folder holds
        something else than a model.

    Example:
      >>> import tempfile
      >>> from gems_jax.data.text.small_tokenizer import train_tokenizer
      >>> tokenizer = train_tokenizer(["red lamps and red chairs"], vocab_size=400, num_sentinels=2)
      >>> sizes = {"d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
      >>> values = {"model_type": "t5", "vocab_size": len(tokenizer), **sizes}
      >>> folder = tempfile.mkdtemp()
      >>> save(from_config(values, jax.random.key(0)), tokenizer, folder)
      >>> load(folder)[0].config.num_layers
      1
    """
    target = Path(os.path.realpath(folder))  # a link stays, and the current folder has a name
    config = model.config
    family = FAMILIES[config.model_type]
    if is_unstacked(model):
        raise ValueError("a model made by unstacked() is for generating: save the model it was made of")
    if max_file_bytes < 1:
        raise ValueError(f"max_file_bytes must be at least 1, got {max_file_bytes}")
    check_tokenizer(tokenizer, config, target)
    if target.exists() and not target.is_dir():
        raise ValueError(f"{target} is a file: give the path of a folder to save the model in")
    if target.is_dir() and any(target.iterdir()) and not (target / _CONFIG).is_file():
        raise ValueError(f"{target} holds files but no model ({_CONFIG}): it would be replaced; give another folder")
    values = family.config_values(config)
    if config.num_added_tokens:
        values |= {
            "vocab_size": config.vocab_size + config.num_added_tokens,
            _BASE_VOCAB_SIZE: config.vocab_size,
        }
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = fresh_folder(target)
    try:
        write_params(params_of(model), family.weights(config), fresh, max_file_bytes)
        (fresh / _CONFIG).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
        tokenizer.save_pretrained(fresh)
        for name, content in (files or {}).items():
            (fresh / name).write_bytes(content.encode() if isinstance(content, str) else content)
        for file in fresh.iterdir():  # safetensors gives its files to their owner alone
            file.chmod(fresh.stat().st_mode & 0o666)
        _replace_folder(fresh, target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def from_config(config: Any, rngs: nnx.Rngs | jax.Array) -> Any:
    """A model with random weights.

    Args:
      config: a `T5Config` or `DecoderConfig`, a mapping with the keys of a Hugging Face ``config.json``, or the path
        of such a file or of its folder.
      rngs: ``nnx.Rngs``, or a PRNG key.

    Raises:
      FileNotFoundError: if the path does not exist.
      ValueError: if the model type or an option is unknown or a key is missing.

    Example:
      >>> import jax
      >>> sizes = {"vocab_size": 20, "d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
      >>> from_config({"model_type": "t5", **sizes}, jax.random.key(0)).config.num_decoder_layers
      1
    """
    if not isinstance(config, tuple(family.config for family in FAMILIES.values())):
        source: Path | str = "config"
        if not isinstance(config, Mapping):
            source = Path(config)
            source = source / _CONFIG if source.is_dir() else source
            config = _read_json(source)
        _, config = _read_family(config, source)
    family = FAMILIES[config.model_type]
    count = sum(math.prod(leaf.shape) for leaf in param_shapes(family.model, config).values())
    if count > MAX_PARAMETERS:
        raise ValueError(f"the config asks for {count:,} parameters, more than {MAX_PARAMETERS:,}: check its sizes")
    return family.model.create(config, rngs() if isinstance(rngs, nnx.Rngs) else rngs)


def _read_family(values: Mapping[str, Any], source: Path | str) -> tuple[Family, Any]:
    """The family and its config, the rows of items counted apart."""
    kind = values.get("model_type")
    if kind not in list(FAMILIES):
        raise ValueError(f"{source}: model_type is {shown(kind)}, known are {sorted(FAMILIES)}")
    pretrained = {key: value for key, value in values.items() if key != _BASE_VOCAB_SIZE}
    rows = as_whole(values.get("vocab_size"))
    if values.get(_BASE_VOCAB_SIZE) is None or rows is None:
        return FAMILIES[kind], FAMILIES[kind].read_config(pretrained, source)
    written = values[_BASE_VOCAB_SIZE]
    base = as_whole(written)
    if base is None or not 1 <= base <= rows:
        raise ValueError(f"{source}: {_BASE_VOCAB_SIZE} is {shown(written)}, it must be from 1 to vocab_size={rows}")
    config = FAMILIES[kind].read_config(pretrained | {"vocab_size": base}, source)
    try:
        return FAMILIES[kind], dataclasses.replace(config, num_added_tokens=rows - base)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def _with_stored_head(config: Any, family: Family, tensors: Mapping[str, StoredTensor]) -> Any:
    """The config, untied if the files hold an output layer of its own.

    transformers 5 writes ``tie_word_embeddings: true`` for untied T5 models, too; older versions write a copy of the
    table for tied ones.
    """
    if not config.tie_word_embeddings or family.untied is None:
        return config
    untied = family.untied(config)
    names = [family.weights(untied)[leaf].name for leaf in (_TABLE, _HEAD)]
    if names[1] not in tensors or (names[0] in tensors and same_values(tensors[names[0]], tensors[names[1]])):
        return config
    return untied


def _check_tensors(
    config: Any,
    family: Family,
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    tensors: Mapping[str, StoredTensor],
    folder: Path,
) -> None:
    """Raises ValueError if the files do not hold what the config asks for."""
    weights = family.weights(config)
    needed = {name for weight in weights.values() for name in weight.names()}
    ignored = list(family.ignored)
    if config.tie_word_embeddings and family.untied is not None:
        ignored.append(re.escape(family.weights(family.untied(config))[_HEAD].name))
    missing = sorted(needed - set(tensors))
    copies = {name: family.copies[name] for name in set(tensors) - needed if name in family.copies}
    others = sorted(set(tensors) - needed - set(copies))
    unknown = [name for name in others if not any(re.fullmatch(each, name) for each in ignored)]
    if missing or unknown:
        raise ValueError(
            f"{folder}: the weights do not fit {_CONFIG}: missing {first_few(missing) or 'none'}; "
            f"unknown {first_few(unknown) or 'none'}"
        )
    for leaf, weight in weights.items():
        shape = stored_shape(shapes[leaf], weight, config.num_added_tokens if leaf in ITEM_TABLES else 0)
        for name in weight.names():
            if tensors[name].shape != shape:
                raise ValueError(f"{folder}: tensor {name} has shape {tensors[name].shape}, {_CONFIG} asks for {shape}")
    for name, original in copies.items():
        if not same_values(tensors[name], tensors[original]):
            raise ValueError(
                f"{folder}: tensor {name} differs from {original}: implemented is one table of tokens for both stacks"
            )


def _existing_folder(folder: str | os.PathLike[str]) -> Path:
    path = Path(folder)
    if not path.is_dir():
        raise FileNotFoundError(
            f"{path} is no folder: give one that holds a Hugging Face model (names are not looked up)"
        )
    return path


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: a Hugging Face model's folder has one")
    return read_object(path)


def _replace_folder(fresh: Path, target: Path) -> None:
    if not target.exists():
        os.replace(fresh, target)
        return
    others = sorted(path.name for path in target.iterdir() if path.is_dir())
    if others:
        raise ValueError(
            f"{target} holds folders beside a model ({others[0]}): they would be lost; give another folder"
        )
    old = fresh_folder(target)
    try:
        os.replace(target, old)
        os.replace(fresh, target)
    finally:
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
