"""Models to and from Hugging Face folders: config.json, model.safetensors and the tokenizer's files."""

import dataclasses
import functools
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gems_jax.items import MAX_UNUSED_ROWS
from gems_jax.leaf_path import leaf_path
from gems_jax.models.t5 import T5, T5Config
from gems_jax.staging import fresh_folder

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_CONFIG = "config.json"
# Our key in config.json: rows from here on are added items, kept apart from the pretrained ones.
_BASE_VOCAB_SIZE = "gems_base_vocab_size"
_FEED_FORWARD = {"relu": "relu", "gated-gelu": "gated-gelu"}


@dataclasses.dataclass(frozen=True)
class _Weight:
    """Where a leaf stands in a Hugging Face file: one tensor, or one for each of ``layers`` layers."""

    name: str
    layers: int | None = None
    transposed: bool = False

    def names(self) -> list[str]:
        """The tensors, first layer first."""
        return [self.name.format(layer) for layer in range(1 if self.layers is None else self.layers)]


def load(folder: str | os.PathLike[str], dtype: str | None = None, mesh: Mesh | None = None) -> tuple[T5, Any]:
    """Loads a model and its tokenizer from a Hugging Face folder.

    Args:
      folder: folder with ``config.json``, ``model.safetensors`` (or its index and parts) and the tokenizer's files.
      dtype: of parameters and computation, ``"float32"`` or ``"bfloat16"``; ``None``: as in the files.
      mesh: devices to put the weights on: kernels are split by output, tables by row over the mesh's last axis
        wherever it divides them; the rest is replicated. ``None``: the default device.

    Returns:
      The model and the tokenizer.

    Raises:
      FileNotFoundError: if the folder or one of its files is missing.
      ValueError: if the model type is unknown, a file is damaged, a tensor is missing, unknown or misshapen, or the
        tokenizer does not belong to the model.
    """
    folder = _existing_folder(folder)
    values = _read_config(folder / _CONFIG)
    config, weights = _family(values, folder / _CONFIG)
    tensors = _open_tensors(folder)
    tied = "lm_head.weight" not in tensors
    if tied != config.tie_word_embeddings:
        # Whether a head of its own was saved decides: newer transformers write tied=true for untied models.
        scaled = config.scale_decoder_outputs
        scaled = config.tie_word_embeddings if scaled is None else scaled
        config = dataclasses.replace(config, tie_word_embeddings=tied, scale_decoder_outputs=scaled)
    stored = {_dtype_name(tensors[name][1]) for name in tensors}
    param_dtype = dtype or ("bfloat16" if stored == {"bfloat16"} else "float32")
    config = dataclasses.replace(config, param_dtype=param_dtype, dtype=param_dtype)
    params = _read_params(config, weights(config), tensors, folder, mesh)
    tokenizer = _load_tokenizer(folder)
    _check_tokenizer(tokenizer, config, folder)
    return T5.from_params(config, params), tokenizer


def save(model: T5, tokenizer: Any, folder: str | os.PathLike[str]) -> None:
    """Writes a model and its tokenizer as a Hugging Face folder that transformers loads with the same logits.

    Item rows are appended to the pretrained ones; ``config.json`` records where they begin, so that `load` keeps
    them apart again. The folder appears whole or not at all.

    Args:
      model: a `T5`.
      tokenizer: its Hugging Face tokenizer.
      folder: where to write; an earlier model there is replaced.

    Raises:
      ValueError: if the tokenizer does not belong to the model, or the folder holds something else than a model.
    """
    target = Path(folder)
    config = model.config
    _check_tokenizer(tokenizer, config, target)
    if target.exists() and not target.is_dir():
        raise ValueError(f"{target} is a file: give the path of a folder to save the model in")
    if target.is_dir() and any(target.iterdir()) and not (target / _CONFIG).is_file():
        raise ValueError(f"{target} holds files but no model ({_CONFIG}): it would be replaced; give another folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = fresh_folder(target)
    try:
        from safetensors.flax import save_file

        save_file(_named_tensors(model), fresh / _WEIGHTS, metadata={"format": "pt"})
        (fresh / _CONFIG).write_text(json.dumps(_config_values(config), indent=2, sort_keys=True) + "\n")
        tokenizer.save_pretrained(fresh)
        fresh.chmod(0o755)
        _replace_folder(fresh, target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def from_config(config: Any, rngs: nnx.Rngs | jax.Array) -> T5:
    """A model with random weights.

    Args:
      config: a `T5Config`, a mapping with the keys of a Hugging Face ``config.json``, or the path of such a file
        or of its folder.
      rngs: ``nnx.Rngs``, or a PRNG key.

    Raises:
      FileNotFoundError: if the path does not exist.
      ValueError: if the model type is unknown or a key is missing.

    Example:
      >>> import jax
      >>> sizes = {"vocab_size": 20, "d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
      >>> from_config({"model_type": "t5", **sizes}, jax.random.key(0)).config.num_decoder_layers
      1
    """
    if not isinstance(config, T5Config):
        place: Path | str = "config"
        if not isinstance(config, Mapping):
            place = Path(config)
            place = place / _CONFIG if place.is_dir() else place
            config = _read_config(place)
        config, _ = _family(config, place)
    return T5.create(config, rngs() if isinstance(rngs, nnx.Rngs) else rngs)


def _t5_config(values: Mapping[str, Any], place: Path | str) -> T5Config:
    needed = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads")
    missing = [key for key in needed if not isinstance(values.get(key), int)]
    if missing:
        raise ValueError(f"{place}: a T5 config needs whole numbers for {missing}")
    feed_forward = values.get("feed_forward_proj", "relu")
    if feed_forward not in _FEED_FORWARD:
        raise ValueError(f"{place}: feed_forward_proj is {feed_forward!r}, known are {sorted(_FEED_FORWARD)}")
    base = values.get(_BASE_VOCAB_SIZE, values["vocab_size"])
    start = values.get("decoder_start_token_id")
    decoder_layers = values.get("num_decoder_layers")
    try:
        return T5Config(
            vocab_size=base,
            num_added_tokens=values["vocab_size"] - base,
            d_model=values["d_model"],
            d_kv=values["d_kv"],
            d_ff=values["d_ff"],
            num_layers=values["num_layers"],
            num_decoder_layers=values["num_layers"] if decoder_layers is None else decoder_layers,
            num_heads=values["num_heads"],
            feed_forward=_FEED_FORWARD[feed_forward],
            relative_buckets=values.get("relative_attention_num_buckets", 32),
            relative_max_distance=values.get("relative_attention_max_distance", 128),
            dropout_rate=values.get("dropout_rate", 0.0),
            tie_word_embeddings=values.get("tie_word_embeddings", True),
            scale_decoder_outputs=values.get("scale_decoder_outputs"),
            norm_epsilon=values.get("layer_norm_epsilon", 1e-6),
            pad_token_id=values.get("pad_token_id", 0),
            eos_token_id=values.get("eos_token_id", 1),
            decoder_start_token_id=values.get("pad_token_id", 0) if start is None else start,
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"{place}: {error}") from error


def _t5_weights(config: T5Config) -> dict[str, _Weight]:
    """Leaf path -> tensors, item rows excepted: they stand behind the pretrained ones."""
    mlp = ("wi_0", "wi_1", "wo") if config.feed_forward == "gated-gelu" else ("wi", "wo")
    found = {"token_embedding/embedding": _Weight("shared.weight")}
    if not config.tie_word_embeddings:
        found["lm_head/embedding"] = _Weight("lm_head.weight")
    stacks = {
        "encoder": (config.num_layers, (("attention", "SelfAttention"),)),
        "decoder": (
            config.num_decoder_layers,
            (("self_attention", "SelfAttention"), ("cross_attention", "EncDecAttention")),
        ),
    }
    for stack, (layers, attentions) in stacks.items():
        block = f"{stack}.block.{{}}.layer"
        parts = [(ours, theirs, ("q", "k", "v", "o")) for ours, theirs in attentions]
        for place, (ours, theirs, kernels) in enumerate([*parts, ("mlp", "DenseReluDense", mlp)]):
            found[f"{stack}/block/{ours}_norm/scale"] = _Weight(f"{block}.{place}.layer_norm.weight", layers)
            for kernel in kernels:
                found[f"{stack}/block/{ours}/{kernel}/kernel"] = _Weight(
                    f"{block}.{place}.{theirs}.{kernel}.weight", layers, transposed=True
                )
        found[f"{stack}/relative_bias/embedding"] = _Weight(
            f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        )
        found[f"{stack}/final_norm/scale"] = _Weight(f"{stack}.final_layer_norm.weight")
    return found


# Tensors of older files that repeat the shared table, or that the reference code never uses.
_IGNORED = (
    "encoder.embed_tokens.weight",
    "decoder.embed_tokens.weight",
    "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",
)
# A further kind of model is a line here.
_FAMILIES: dict[str, tuple[Callable[..., T5Config], Callable[[T5Config], dict[str, _Weight]]]] = {
    "t5": (_t5_config, _t5_weights),
}
_ITEM_TABLES = {
    "token_embedding/embedding": "item_embedding/embedding",
    "lm_head/embedding": "item_head/embedding",
}


def _family(values: Mapping[str, Any], place: Path | str) -> tuple[T5Config, Callable[[T5Config], dict[str, _Weight]]]:
    kind = values.get("model_type")
    if kind not in _FAMILIES:
        raise ValueError(f"{place}: model_type is {kind!r}, known are {sorted(_FAMILIES)}")
    to_config, weights = _FAMILIES[kind]
    return to_config(values, place), weights


def _config_values(config: T5Config) -> dict[str, Any]:
    scaled = config.scale_decoder_outputs
    values = {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "is_encoder_decoder": True,
        "vocab_size": config.vocab_size + config.num_added_tokens,
        "d_model": config.d_model,
        "d_kv": config.d_kv,
        "d_ff": config.d_ff,
        "num_layers": config.num_layers,
        "num_decoder_layers": config.num_decoder_layers,
        "num_heads": config.num_heads,
        "feed_forward_proj": config.feed_forward,
        "relative_attention_num_buckets": config.relative_buckets,
        "relative_attention_max_distance": config.relative_max_distance,
        "dropout_rate": config.dropout_rate,
        "layer_norm_epsilon": config.norm_epsilon,
        "tie_word_embeddings": config.tie_word_embeddings,
        "scale_decoder_outputs": config.tie_word_embeddings if scaled is None else scaled,
        "pad_token_id": config.pad_token_id,
        "eos_token_id": config.eos_token_id,
        "decoder_start_token_id": config.decoder_start_token_id,
        "dtype": config.param_dtype,
    }
    return values | ({_BASE_VOCAB_SIZE: config.vocab_size} if config.num_added_tokens else {})


# A tensor's shape and type, read from the file's head, and how to read the tensor itself.
_Tensors = dict[str, tuple[tuple[int, ...], str, Callable[[], jax.Array]]]


def _open_tensors(folder: Path) -> _Tensors:
    from safetensors import SafetensorError, safe_open

    found: _Tensors = {}
    for path in _weight_files(folder):
        try:
            file = safe_open(path, framework="flax")
            for name in file.keys():  # noqa: SIM118, not a dictionary
                part = file.get_slice(name)
                read = functools.partial(file.get_tensor, name)
                found[name] = (tuple(part.get_shape()), part.get_dtype(), read)
        except SafetensorError as error:
            raise ValueError(f"{path} is no whole safetensors file ({error}): copy or download it again") from error
    return found


def _weight_files(folder: Path) -> Iterator[Path]:
    if (folder / _WEIGHTS).is_file():
        yield folder / _WEIGHTS
        return
    if not (folder / _INDEX).is_file():
        raise FileNotFoundError(
            f"{folder / _WEIGHTS} does not exist: the folder needs weights in safetensors format (for random weights "
            "use gems_jax.models.from_config)"
        )
    for name in sorted(set(_read_config(folder / _INDEX).get("weight_map", {}).values())):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} does not exist, though {_INDEX} names it")
        yield folder / name


def _dtype_name(stored: str) -> str:
    return {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}.get(stored, stored)


def _read_params(
    config: T5Config, weights: Mapping[str, _Weight], tensors: _Tensors, folder: Path, mesh: Mesh | None
) -> dict[str, jax.Array]:
    _, abstract = nnx.split(nnx.eval_shape(lambda: T5(config, jax.random.key(0))))
    shapes = {leaf_path(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(abstract)}
    names = [name for weight in weights.values() for name in weight.names()]
    missing = [name for name in names if name not in tensors]
    unknown = sorted(set(tensors) - set(names) - set(_IGNORED))
    if missing or unknown:
        raise ValueError(
            f"{folder}: the weights do not fit {_CONFIG}: missing {missing[:5]}, unknown {unknown[:5]} "
            f"({len(missing)} and {len(unknown)} tensors)"
        )
    params = {}
    for leaf, weight in weights.items():
        shape = shapes[leaf] if weight.layers is None else shapes[leaf][1:]
        if leaf in _ITEM_TABLES:
            shape = (config.vocab_size + config.num_added_tokens, config.d_model)
        shape = shape[::-1] if weight.transposed else shape
        for name in weight.names():
            if tensors[name][0] != shape:
                raise ValueError(f"{folder}: tensor {name} has shape {tensors[name][0]}, {_CONFIG} asks for {shape}")
        layers = [tensors[name][2]().astype(config.param_dtype) for name in weight.names()]
        layers = [layer.T for layer in layers] if weight.transposed else layers
        value = layers[0] if weight.layers is None else jnp.stack(layers)
        if leaf in _ITEM_TABLES and config.num_added_tokens:
            params[_ITEM_TABLES[leaf]] = _place(value[config.vocab_size :], _ITEM_TABLES[leaf], mesh)
            value = value[: config.vocab_size]
        params[leaf] = _place(value, leaf, mesh)
    return params


def _place(value: jax.Array, leaf: str, mesh: Mesh | None) -> jax.Array:
    if mesh is None:
        return value
    axis = mesh.axis_names[-1]
    split = {"kernel": value.ndim - 1, "embedding": 0}.get(leaf.rsplit("/", 1)[-1])
    spec: list[str | None] = [None] * value.ndim
    if split is not None and value.shape[split] % mesh.shape[axis] == 0:
        spec[split] = axis
    return jax.device_put(value, NamedSharding(mesh, PartitionSpec(*spec)))


def _named_tensors(model: T5) -> dict[str, jax.Array]:
    params = {leaf_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(nnx.state(model, nnx.Param))}
    tensors = {}
    for leaf, weight in _t5_weights(model.config).items():
        value = params[leaf]
        if leaf in _ITEM_TABLES and model.config.num_added_tokens:
            value = jnp.concatenate([value, params[_ITEM_TABLES[leaf]]])
        for layer, name in enumerate(weight.names()):
            part = value if weight.layers is None else value[layer]
            tensors[name] = part.T if weight.transposed else part
    return tensors


def _existing_folder(folder: str | os.PathLike[str]) -> Path:
    path = Path(folder)
    if not path.is_dir():
        raise FileNotFoundError(
            f"{path} is no folder: give one that holds a Hugging Face model (names are not looked up)"
        )
    return path


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: a Hugging Face model's folder has one")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a JSON object, found {type(values).__name__}")
    return values


def _load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        # The file is the whole tokenizer; the class that model_type stands for would rebuild it as a unigram one.
        if (folder / "tokenizer.json").is_file():
            return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        if (folder / "spiece.model").is_file():
            return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise ValueError(f"{folder}: the tokenizer's files cannot be read: {error}") from error
    raise FileNotFoundError(f"{folder / 'tokenizer.json'} does not exist: the folder needs the model's tokenizer")


def _check_tokenizer(tokenizer: Any, config: T5Config, folder: Path) -> None:
    rows = config.vocab_size + config.num_added_tokens
    spare = 0 if config.num_added_tokens else MAX_UNUSED_ROWS
    if not 0 <= rows - len(tokenizer) <= spare:
        raise ValueError(
            f"{folder}: the tokenizer has {len(tokenizer)} tokens, the model's embedding {rows} rows"
            + (f" ({config.num_added_tokens} of them items)" if config.num_added_tokens else "")
            + ": they do not belong together"
        )


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
    os.replace(target, old)
    os.replace(fresh, target)
    shutil.rmtree(old, ignore_errors=True)
