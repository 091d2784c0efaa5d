"""Values of a ``config.json``: their types, and the keys that a model passes over or refuses by name."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gems_jax.models.config_checks import check_number, is_number, shown

Values = Mapping[str, Any]

# Keys of real files of any family that do not change what the model computes from tokens, by the reason why.
_NO_EFFECT = {
    "who wrote the file and where from": (
        *("transformers_version", "name_or_path", "auto_map", "custom_pipelines", "finetuning_task", "torchscript"),
        *("model_name_or_path", "base_model_name_or_path", "trust_remote_code", "revision", "commit_hash"),
        *("license", "language", "tags", "date"),
    ),
    "the type of the weights stands in their own files": ("dtype", "torch_dtype", "use_bfloat16", "bf16", "fp16"),
    "another program for the same result": (
        *("attn_implementation", "experts_implementation", "use_flash_attention", "use_flash_attention_2"),
        *("use_flash_attn", "chunk_size_feed_forward", "gradient_checkpointing", "use_gradient_checkpointing"),
        *("use_cache", "pretraining_tp"),
    ),
    "what a call returns beside the logits": (
        *("return_dict", "use_return_dict", "output_hidden_states", "output_attentions", "output_past"),
        *("output_scores", "return_dict_in_generate", "tie_last_hidden_states", "tf_legacy_loss"),
        "keys_to_ignore_at_inference",
    ),
    "heads that classify": ("num_labels", "id2label", "label2id", "problem_type", "classifier_dropout"),
    "random weights, whose variances are ours": ("initializer_factor",),
    "of the tokenizer": (
        *("tokenizer_class", "sep_token_id", "prefix", "task_specific_params", "vocab_file"),
        *("bos_token", "eos_token", "pad_token", "unk_token"),
    ),
    "how long a text is meant to be; nothing is cut": (
        *("n_positions", "max_sequence_length", "max_seq_length", "max_seq_len", "model_max_length", "seq_length"),
    ),
    "how the tokens are generated, not their scores": (
        *("max_length", "min_length", "max_new_tokens", "min_new_tokens", "do_sample", "temperature", "top_k"),
        *("top_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "num_beams", "num_beam_groups"),
        *("num_return_sequences", "num_assistant_tokens", "num_assistant_tokens_schedule"),
        *("assistant_confidence_threshold", "assistant_lookbehind", "target_lookbehind", "length_penalty"),
        *("repetition_penalty", "encoder_repetition_penalty", "no_repeat_ngram_size"),
        *("encoder_no_repeat_ngram_size", "diversity_penalty", "early_stopping", "remove_invalid_values"),
        *("bad_words_ids", "forced_bos_token_id", "forced_eos_token_id", "suppress_tokens"),
        *("begin_suppress_tokens", "exponential_decay_length_penalty"),
    ),
}
NO_EFFECT = frozenset(key for keys in _NO_EFFECT.values() for key in keys)
# Keys that any configuration of transformers may have, and the values under which they change nothing.
NOT_IMPLEMENTED: dict[str, tuple[Any, ...]] = {
    "add_cross_attention": (False,),
    "tie_encoder_decoder": (False,),
    "cross_attention_hidden_size": (),
    "pruned_heads": ({}, []),
    "per_layer_config": ({},),
    "configuration_files": ([],),
    "transformers_weights": ("model.safetensors",),
}
# Prefixes of the same class in other frameworks.
_FRAMEWORKS = ("", "TF", "Flax")


def as_whole(value: Any) -> int | None:
    """A whole number as such, also one written with a point; ``None``: it is none.

    Example:
      >>> as_whole(8), as_whole(8.0), as_whole(8.5), as_whole(True), as_whole("8")
      (8, 8, None, None, None)
    """
    return int(value) if is_number(value) and value == int(value) else None


def whole(values: Values, key: str, default: int) -> int:
    """A whole number, or ``default`` where the key is absent or null.

    Raises:
      ValueError: the value is something else.
    """
    value = maybe_whole(values, key)
    return default if value is None else value


def maybe_whole(values: Values, key: str) -> int | None:
    """A whole number, or ``None`` where the key is absent or null.

    Raises:
      ValueError: the value is something else.
    """
    value = as_whole(values.get(key))
    if value is None and values.get(key) is not None:
        raise ValueError(f"{key} must be a whole number, got {shown(values[key])}")
    return value


def number(values: Values, key: str, default: float, low: float, high: float) -> float:
    """A number, at least ``low`` and below ``high``, or ``default`` where the key is absent or null.

    Raises:
      ValueError: the value is something else.
    """
    if values.get(key) is None:
        return default
    check_number(key, values[key], low, high)
    return float(values[key])


def truth(values: Values, key: str, default: bool) -> bool:
    """True or false, also written 1 or 0, or ``default`` where the key is absent or null.

    Raises:
      ValueError: the value is something else.
    """
    value = values.get(key)
    if value is None:
        return default
    if not isinstance(value, bool) and as_whole(value) not in (0, 1):
        raise ValueError(f"{key} must be true or false, got {shown(value)}")
    return bool(value)


def token_ids(values: Values, key: str) -> list[int]:
    """The token ids of a key: none where it is absent or null, one, or all of a list.

    Raises:
      ValueError: the value is something else.
    """
    value = values.get(key)
    written = value if isinstance(value, list) else [] if value is None else [value]
    ids = [as_whole(token) for token in written]
    if None in ids:
        raise ValueError(f"{key} must be a token id or a list of them, got {shown(value)}")
    return [token for token in ids if token is not None]


def class_names(name: str, *older: str) -> tuple[list[str], ...]:
    """The values of ``architectures`` that stand for a class: its name, older ones, those of other frameworks.

    Example:
      >>> class_names("T5Model")
      ([], ['T5Model'], ['TFT5Model'], ['FlaxT5Model'])
    """
    return ([], *([prefix + each] for each in (name, *older) for prefix in _FRAMEWORKS))


def check_options(values: Values, implemented: Mapping[str, tuple[Any, ...]], where: str, source: Path | str) -> None:
    """Raises ``ValueError`` for an option with another value than those that are implemented.

    Args:
      values: of the file.
      implemented: values by key; none: the key must be absent or null.
      where: for what they are implemented, for the message.
      source: the file's name in messages.
    """
    for key, choices in implemented.items():
        if values.get(key) is not None and values[key] not in choices:
            named = [choice for choice in choices if choice not in ([], {})]
            choice = " or ".join(map(repr, named)) or "its absence"
            raise ValueError(f"{source}: {key} is {shown(values[key])}, implemented for {where} is {choice}")


def check_unknown(values: Values, known: Iterable[str], kind: str, source: Path | str) -> None:
    """Raises ``ValueError`` for keys that are switched on and neither ``known`` nor without effect.

    Keys that begin with ``_`` are notes of transformers to itself.
    """
    others = set(values) - set(known) - NO_EFFECT
    unknown = sorted(key for key in others if not key.startswith("_") and values[key] not in (None, False, [], {}))
    if unknown:
        raise ValueError(
            f"{source}: unknown options {shown(unknown)} might change what a {kind} model computes: remove them "
            "from the file if they do not"
        )
