"""Options of a ``config.json`` that a model does not implement, refused by name."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

# Keys of real files of any family that do not change what the model computes from tokens.
NO_EFFECT = frozenset(
    [
        *("transformers_version", "_name_or_path", "torch_dtype", "dtype", "use_cache", "tokenizer_class"),
        *("torchscript", "task_specific_params", "problem_type", "id2label", "label2id"),
        *("return_dict", "output_hidden_states", "output_attentions", "chunk_size_feed_forward", "pruned_heads"),
        *("max_length", "min_length", "do_sample", "temperature", "top_k", "top_p", "typical_p", "num_beams"),
        *("num_beam_groups", "num_return_sequences", "length_penalty", "repetition_penalty", "no_repeat_ngram_size"),
        *("encoder_no_repeat_ngram_size", "diversity_penalty", "early_stopping", "remove_invalid_values"),
    ]
)


def check_options(
    values: Mapping[str, Any], implemented: Mapping[str, tuple[Any, ...]], where: str, place: Path | str
) -> None:
    """Raises ``ValueError`` for an option with another value than those that are implemented.

    Args:
      values: of the file.
      implemented: values by key; none: the key must be absent or null.
      where: for what they are implemented, for the message.
      place: the file's name in messages.
    """
    for key, choices in implemented.items():
        if values.get(key) is not None and values[key] not in choices:
            choice = " or ".join(map(repr, choices)) or "its absence"
            raise ValueError(f"{place}: {key} is {values[key]!r}, implemented for {where} is {choice}")


def check_unknown(values: Mapping[str, Any], known: Iterable[str], kind: str, place: Path | str) -> None:
    """Raises ``ValueError`` for keys that are switched on and neither ``known`` nor without effect."""
    others = set(values) - set(known) - NO_EFFECT
    unknown = sorted(key for key in others if values[key] not in (None, False, [], {}))
    if unknown:
        raise ValueError(
            f"{place}: unknown options {unknown} might change what a {kind} model computes: remove them from the file "
            "if they do not"
        )
