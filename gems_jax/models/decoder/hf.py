"""Llama, Mistral, Qwen2 and Qwen3 as Hugging Face writes them: ``config.json`` and the names of the tensors."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gems_jax.models.config_checks import MAX_EPSILON, MAX_LAYERS, check_whole, shown
from gems_jax.models.config_options import (
    NOT_IMPLEMENTED,
    as_whole,
    check_options,
    check_unknown,
    class_names,
    maybe_whole,
    number,
    token_ids,
    truth,
    whole,
)
from gems_jax.models.decoder.config import MODEL_TYPES, DecoderConfig
from gems_jax.models.decoder.hf_rope import read_rope, rope_values
from gems_jax.models.decoder.model import Decoder
from gems_jax.models.family import Family, Weight

_CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_OLDER_CLASSES = {"llama": ("LLaMAForCausalLM",)}
# What an absent key stands for: the defaults of transformers' config classes.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2},
    "mistral": {
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "sliding_window": 4096,
    },
    "qwen2": {"num_key_value_heads": 32, "max_position_embeddings": 32768, "sliding_window": 4096},
    "qwen3": {"num_key_value_heads": 32, "max_position_embeddings": 32768, "sliding_window": 4096, "head_dim": 128},
}
_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_MORE_SIZES = ("num_key_value_heads", "head_dim", "max_position_embeddings", "sliding_window", "max_window_layers")
_READ = {
    *_SIZES,
    *_MORE_SIZES,
    *NOT_IMPLEMENTED,
    *("model_type", "architectures", "hidden_act"),
    *("initializer_range", "rms_norm_eps", "pad_token_id", "bos_token_id", "eos_token_id", "tie_word_embeddings"),
    *("rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor", "original_max_position_embeddings"),
    *("attention_bias", "attention_dropout", "mlp_bias"),
    *("use_sliding_window", "layer_types", "is_encoder_decoder"),
}
# Keys of real files of these families that do not change what the model computes from tokens.
_NO_EFFECT = {
    *("transformers.js_config", "unsloth_version", "unsloth_fixed", "is_llama_config", "is_decoder"),
    *("decoder_start_token_id",),
}


def read_config(values: Mapping[str, Any], source: Path | str) -> DecoderConfig:
    """The config that a ``config.json`` describes.

    Args:
      values: of the file, as written by any version of transformers.
      source: its name in messages.

    Raises:
      ValueError: if a key is missing or wrong, or asks for something that the model does not compute.

    Example:
      >>> sizes = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1}
      >>> read_config({"model_type": "llama", **sizes, "num_attention_heads": 2}, "config").head_dim
      4
    """
    kind = values.get("model_type")
    if kind not in list(_CLASSES):
        raise ValueError(f"{source}: model_type is {shown(kind)}, decoders are {sorted(_CLASSES)}")
    missing = [key for key in _SIZES if as_whole(values.get(key)) is None]
    if missing:
        raise ValueError(f"{source}: a {kind} config needs whole numbers for {missing}")
    given = {**_DEFAULTS[kind], **values}
    wrong = [key for key in _MORE_SIZES if given.get(key) is not None and as_whole(given[key]) is None]
    if wrong:
        raise ValueError(f"{source}: {wrong} must be whole numbers or null, got {shown([given[key] for key in wrong])}")
    given |= {key: as_whole(given[key]) for key in (*_SIZES, *_MORE_SIZES) if given.get(key) is not None}
    _refuse(given, kind, source)
    try:
        return _config(given, kind)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def _config(given: Mapping[str, Any], kind: str) -> DecoderConfig:
    heads = given["num_attention_heads"]
    max_positions = whole(given, "max_position_embeddings", _DEFAULTS[kind]["max_position_embeddings"])
    theta, scaling = read_rope(given, max_positions)
    window, sliding_layers = _windows(given, kind)
    stops = token_ids(given, "eos_token_id")
    eos = stops[0] if stops else None
    pad = whole(given, "pad_token_id", -1)  # what some files write for none
    return DecoderConfig(
        model_type=kind,
        vocab_size=given["vocab_size"],
        d_model=given["hidden_size"],
        d_ff=given["intermediate_size"],
        num_layers=given["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=heads if given.get("num_key_value_heads") is None else given["num_key_value_heads"],
        head_dim=given["hidden_size"] // max(heads, 1) if given.get("head_dim") is None else given["head_dim"],
        attention_bias=truth(given, "attention_bias", False),
        mlp_bias=truth(given, "mlp_bias", False),
        rope_theta=theta,
        rope_scaling=scaling,
        max_positions=max_positions,
        sliding_window=window,
        sliding_layers=sliding_layers,
        tie_word_embeddings=truth(given, "tie_word_embeddings", False),
        norm_epsilon=number(given, "rms_norm_eps", 1e-6, 0.0, MAX_EPSILON),
        initializer_range=number(given, "initializer_range", 0.02, 0.0, math.inf),
        pad_token_id=_padding(eos) if pad < 0 else pad,
        bos_token_id=maybe_whole(given, "bos_token_id"),
        eos_token_id=eos,
        more_stop_ids=tuple(stops[1:]),
        has_pad_token=pad >= 0,
    )


def _refuse(given: Mapping[str, Any], kind: str, source: Path | str) -> None:
    """Raises for what the model does not compute."""
    expected: dict[str, tuple[Any, ...]] = {
        "hidden_act": ("silu", "swish"),
        "attention_dropout": (0,),
        "partial_rotary_factor": (1,),
        "architectures": class_names(_CLASSES[kind], *_OLDER_CLASSES.get(kind, ())),
        "is_encoder_decoder": (False,),
        **NOT_IMPLEMENTED,
    }
    if kind in ("qwen2", "mistral"):
        expected |= {"attention_bias": (False,)}
    if kind != "llama":
        expected |= {"mlp_bias": (False,)}
    if kind == "mistral":
        expected |= {"layer_types": ()}
    check_options(given, expected, kind, source)
    check_unknown(given, _READ | _NO_EFFECT, kind, source)


def _windows(given: Mapping[str, Any], kind: str) -> tuple[int | None, tuple[bool, ...] | None]:
    """Width of the sliding window, and in which layers it holds."""
    if kind == "llama":
        return None, None
    if kind == "mistral":
        return given["sliding_window"], None
    layers, types = given["num_hidden_layers"], given.get("layer_types")
    check_whole("num_hidden_layers", layers, 1, MAX_LAYERS)
    window = given["sliding_window"] if truth(given, "use_sliding_window", False) else None
    if types is None:
        first = whole(given, "max_window_layers", 28)
        types = ["sliding_attention" if window and layer >= first else "full_attention" for layer in range(layers)]
    kinds = ("full_attention", "sliding_attention")
    if not isinstance(types, list) or len(types) != layers or any(name not in kinds for name in types):
        raise ValueError(f"layer_types must be {layers} times full_attention or sliding_attention, got {shown(types)}")
    sliding = tuple(name == "sliding_attention" for name in types)
    if any(sliding) and not window:
        raise ValueError("layer_types has sliding_attention, but use_sliding_window or sliding_window is not set")
    return (window, sliding) if any(sliding) else (None, None)


def _padding(eos_token_id: int | None) -> int:
    """The token that pads a text where the file names none; as for transformers the one that ends a text."""
    return 0 if eos_token_id is None else eos_token_id


def config_values(config: DecoderConfig) -> dict[str, Any]:
    """The values of ``config.json`` for a config, item rows not counted as vocabulary."""
    stops = config.stop_ids
    values: dict[str, Any] = {
        "architectures": [_CLASSES[config.model_type]],
        "model_type": config.model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_positions,
        "initializer_range": config.initializer_range,
        "rms_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": config.tie_word_embeddings,
        "attention_dropout": 0.0,
        "pad_token_id": config.pad_token_id if config.has_pad_token else None,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(stops) if len(stops) > 1 else config.eos_token_id,
        "dtype": config.param_dtype,
        **rope_values(config.rope_theta, config.rope_scaling),
    }
    if config.model_type in ("llama", "qwen3"):
        values["attention_bias"] = config.attention_bias
    if config.model_type == "llama":
        values["mlp_bias"] = config.mlp_bias
    if config.model_type == "mistral":
        values["sliding_window"] = config.sliding_window
    if config.model_type in ("qwen2", "qwen3"):
        sliding = config.sliding_layers or (config.sliding_window is not None,) * config.num_layers
        values["use_sliding_window"] = config.sliding_window is not None
        values["sliding_window"] = config.sliding_window
        # Read by versions of transformers that do not know layer_types.
        values["max_window_layers"] = sliding.index(True) if any(sliding) else config.num_layers
        values["layer_types"] = ["sliding_attention" if slides else "full_attention" for slides in sliding]
    return values


def weights(config: DecoderConfig) -> dict[str, Weight]:
    """Leaf path -> tensors, item rows excepted: they stand behind the pretrained ones."""
    layers = config.num_layers
    tensors = {
        "token_embedding/embedding": Weight("model.embed_tokens.weight"),
        "final_norm/scale": Weight("model.norm.weight"),
        "block/attention_norm/scale": Weight("model.layers.{}.input_layernorm.weight", layers),
        "block/mlp_norm/scale": Weight("model.layers.{}.post_attention_layernorm.weight", layers),
    }
    if not config.tie_word_embeddings:
        tensors["lm_head/embedding"] = Weight("lm_head.weight")
    qkv_bias = config.attention_bias or config.model_type == "qwen2"
    kernels = [("attention", name, "self_attn", qkv_bias) for name in ("q", "k", "v")]
    kernels += [("attention", "o", "self_attn", config.attention_bias)]
    kernels += [("mlp", name, "mlp", config.mlp_bias) for name in ("gate", "up", "down")]
    for part, name, theirs, bias in kernels:
        tensor = f"model.layers.{{}}.{theirs}.{name}_proj"
        tensors[f"block/{part}/{name}/kernel"] = Weight(f"{tensor}.weight", layers, transposed=True)
        if bias:
            tensors[f"block/{part}/{name}/bias"] = Weight(f"{tensor}.bias", layers)
    if config.model_type == "qwen3":
        for name in ("q_norm", "k_norm"):
            tensors[f"block/attention/{name}/scale"] = Weight(f"model.layers.{{}}.self_attn.{name}.weight", layers)
    return tensors


def untied(config: DecoderConfig) -> DecoderConfig:
    """The config of the same model with an output layer of its own."""
    return dataclasses.replace(config, tie_word_embeddings=False)


FAMILY = Family(
    model_types=MODEL_TYPES,
    config=DecoderConfig,
    model=Decoder,
    read_config=read_config,
    config_values=config_values,
    weights=weights,
    honoured=frozenset(_READ),
    no_effect=frozenset(_NO_EFFECT),
    untied=untied,
    # Older files hold the frequencies of the rotary positions, which follow from the config.
    ignored=(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",),
)
