"""T5, mT5 and UMT5 as Hugging Face writes them: ``config.json`` and the names of the tensors."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gems_jax.models.config_checks import MAX_EPSILON, shown
from gems_jax.models.config_options import (
    NOT_IMPLEMENTED,
    as_whole,
    check_options,
    check_unknown,
    class_names,
    number,
    token_ids,
    truth,
    whole,
)
from gems_jax.models.family import Family, Weight
from gems_jax.models.t5.config import MODEL_TYPES, T5Config
from gems_jax.models.t5.model import T5

_CLASSES = {"t5": "T5ForConditionalGeneration", "mt5": "MT5ForConditionalGeneration"}
_CLASSES["umt5"] = "UMT5ForConditionalGeneration"
_OLDER_CLASSES = {"t5": ("T5WithLMHeadModel",)}
_SIZES = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads")
# What feed_forward_proj stands for: gated or not, and the names of its activation.
_FEED_FORWARD = {"relu": (False, ("relu",)), "gated-gelu": (True, ("gelu_new", "gelu_pytorch_tanh"))}
# Other names that transformers has for a size.
_ALIASES = {
    "hidden_size": "d_model",
    "num_attention_heads": "num_heads",
    "num_hidden_layers": "num_layers",
    "head_dim": "d_kv",
}
_READ = {
    *_SIZES,
    *_ALIASES,
    *NOT_IMPLEMENTED,
    *("model_type", "architectures", "num_decoder_layers", "feed_forward_proj", "is_gated_act", "dense_act_fn"),
    *("relative_attention_num_buckets", "relative_attention_max_distance", "dropout_rate", "layer_norm_epsilon"),
    *("tie_word_embeddings", "scale_decoder_outputs", "is_encoder_decoder", "is_decoder"),
    *("pad_token_id", "eos_token_id", "decoder_start_token_id"),
}
# Keys of real files of this family that do not change what the model computes from tokens.
_NO_EFFECT = {"scalable_attention", "bos_token_id"}


def read_config(values: Mapping[str, Any], source: Path | str) -> T5Config:
    """The config that a ``config.json`` describes.

    Args:
      values: of the file, as written by any version of transformers.
      source: its name in messages.

    Raises:
      ValueError: if a key is missing or wrong, or asks for something that the model does not compute.

    Example:
      >>> sizes = {"vocab_size": 20, "d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
      >>> read_config({"model_type": "t5", **sizes}, "config").feed_forward
      'relu'
    """
    kind = values.get("model_type")
    if kind not in MODEL_TYPES:
        raise ValueError(f"{source}: model_type is {shown(kind)}, T5's are {list(MODEL_TYPES)}")
    missing = [key for key in _SIZES if as_whole(values.get(key)) is None]
    if missing:
        raise ValueError(f"{source}: a T5 config needs whole numbers for {missing}")
    feed_forward = values.get("feed_forward_proj") or ("relu" if kind == "t5" else "gated-gelu")
    _refuse(values, kind, feed_forward, source)
    try:
        sizes = {key: whole(values, key, 0) for key in _SIZES}
        tied = truth(values, "tie_word_embeddings", True)
        # Older files have no such key, and no version of transformers reads it for mT5.
        scaled = None if kind == "mt5" else truth(values, "scale_decoder_outputs", tied)
        pad = _token(values, "pad_token_id", 0)
        return T5Config(
            model_type=kind,
            vocab_size=sizes["vocab_size"],
            d_model=sizes["d_model"],
            d_kv=sizes["d_kv"],
            d_ff=sizes["d_ff"],
            num_layers=sizes["num_layers"],
            num_heads=sizes["num_heads"],
            num_decoder_layers=whole(values, "num_decoder_layers", sizes["num_layers"]),
            feed_forward=feed_forward,
            relative_buckets=whole(values, "relative_attention_num_buckets", 32),
            relative_max_distance=whole(values, "relative_attention_max_distance", 128),
            dropout_rate=number(values, "dropout_rate", 0.0, 0.0, 1.0),
            tie_word_embeddings=tied,
            scale_decoder_outputs=None if kind == "umt5" and scaled == tied else scaled,
            norm_epsilon=number(values, "layer_norm_epsilon", 1e-6, 0.0, MAX_EPSILON),
            pad_token_id=pad,
            eos_token_id=_token(values, "eos_token_id", 1),
            decoder_start_token_id=_token(values, "decoder_start_token_id", pad),
        )
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def _token(values: Mapping[str, Any], key: str, default: int) -> int:
    ids = token_ids(values, key) or [default]
    if len(ids) > 1:
        raise ValueError(f"{key} is {shown(values[key])}, implemented for {values['model_type']} here is one token id")
    return ids[0]


def _refuse(values: Mapping[str, Any], kind: str, feed_forward: Any, source: Path | str) -> None:
    """Raises for what the model does not compute."""
    if feed_forward not in list(_FEED_FORWARD):
        raise ValueError(f"{source}: feed_forward_proj is {shown(feed_forward)}, known are {sorted(_FEED_FORWARD)}")
    gated, activations = _FEED_FORWARD[feed_forward]
    # The last two follow from feed_forward_proj, but where they differ transformers believes them.
    expected: dict[str, tuple[Any, ...]] = {
        "is_gated_act": (gated,),
        "dense_act_fn": activations,
        "is_encoder_decoder": (True,),
        "is_decoder": (False,),
        "architectures": class_names(_CLASSES[kind], *_OLDER_CLASSES.get(kind, ())),
        **NOT_IMPLEMENTED,
    }
    expected |= {alias: (values[size],) for alias, size in _ALIASES.items()}
    check_options(values, expected, f"{kind} here", source)
    check_unknown(values, _READ | _NO_EFFECT, kind, source)


def config_values(config: T5Config) -> dict[str, Any]:
    """The values of ``config.json`` for a config, item rows not counted as vocabulary."""
    values = {
        "architectures": [_CLASSES[config.model_type]],
        "model_type": config.model_type,
        "is_encoder_decoder": True,
        "vocab_size": config.vocab_size,
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
        "pad_token_id": config.pad_token_id,
        "eos_token_id": config.eos_token_id,
        "decoder_start_token_id": config.decoder_start_token_id,
        "dtype": config.param_dtype,
    }
    # mT5 is never scaled, transformers has no key for it.
    return values | ({} if config.model_type == "mt5" else {"scale_decoder_outputs": config.scales_outputs})


def weights(config: T5Config) -> dict[str, Weight]:
    """Leaf path -> tensors, item rows excepted: they stand behind the pretrained ones."""
    mlp = ("wi_0", "wi_1", "wo") if config.feed_forward == "gated-gelu" else ("wi", "wo")
    tensors = {"token_embedding/embedding": Weight("shared.weight")}
    if not config.tie_word_embeddings:
        tensors["lm_head/embedding"] = Weight("lm_head.weight")
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
        for sublayer, (ours, theirs, kernels) in enumerate([*parts, ("mlp", "DenseReluDense", mlp)]):
            tensors[f"{stack}/block/{ours}_norm/scale"] = Weight(f"{block}.{sublayer}.layer_norm.weight", layers)
            for kernel in kernels:
                tensors[f"{stack}/block/{ours}/{kernel}/kernel"] = Weight(
                    f"{block}.{sublayer}.{theirs}.{kernel}.weight", layers, transposed=True
                )
        bias = f"{block}.0.SelfAttention.relative_attention_bias.weight"
        per_layer = Weight(bias, layers) if config.positions_per_layer else Weight(bias.format(0))
        tensors[f"{stack}/relative_bias/embedding"] = per_layer
        tensors[f"{stack}/final_norm/scale"] = Weight(f"{stack}.final_layer_norm.weight")
    return tensors


def untied(config: T5Config) -> T5Config:
    """The config of the same model with an output layer of its own."""
    return dataclasses.replace(config, tie_word_embeddings=False, scale_decoder_outputs=config.scales_outputs)


FAMILY = Family(
    model_types=MODEL_TYPES,
    config=T5Config,
    model=T5,
    read_config=read_config,
    config_values=config_values,
    weights=weights,
    honoured=frozenset(_READ),
    no_effect=frozenset(_NO_EFFECT),
    untied=untied,
    # Older files repeat the shared table, and hold a bias that the reference code never uses.
    copies={f"{stack}.embed_tokens.weight": "shared.weight" for stack in ("encoder", "decoder")},
    ignored=(r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",),
)
