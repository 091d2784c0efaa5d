"""Checks every field of a configuration, all of them together, before any work.

Words, choices and shapes of values follow from the fields' types; what numbers may be stands in `RANGES`, a line each,
and words that may be added to in `CHOICES`.
"""

import dataclasses
import difflib
import functools
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, Union, get_args, get_origin

from gems_jax.config.methods import METHODS
from gems_jax.data.sources import registry

# Steps, rows and sizes are int32 on devices; seeds are uint32.
MOST = 2**31 - 1
SEEDS = 2**32 - 1
_SHOWN = 60


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from ``least`` to ``most``, or above and below them.

    Attributes:
      least, most: ends that belong to it.
      above, below: ends that do not.
      share: whether a number with a fraction stands for a share: above 0, at most 1.

    Example:
      >>> Range(above=0).holds(0.5), Range(above=0).holds(0), Range(1, share=True).holds(1.5)
      (True, False, False)
    """

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    share: bool = False

    def holds(self, value: float) -> bool:
        """Whether a finite number is in the range."""
        if self.share and isinstance(value, float):
            return 0 < value <= 1
        return (
            (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        """In words, behind "a number".

        Example:
          >>> str(Range(0, below=1)), str(whole(1)), str(Range(above=0))
          ('from 0 on and below 1', 'from 1 to 2147483647', 'above 0')
        """
        words = []
        if self.least is not None and self.most is not None:
            words.append(f"from {self.least:.10g} to {self.most:.10g}")
        elif self.least is not None:
            words.append(f"from {self.least:g} on")
        elif self.most is not None:
            words.append(f"at most {self.most:g}")
        words += [f"above {self.above:g}"] if self.above is not None else []
        words += [f"below {self.below:g}"] if self.below is not None else []
        return " and ".join(words) + (", or a share above 0 and at most 1" if self.share else "")


def _shown_range(limit: Range, value: Any) -> Range:
    """The range without the end of int32, where that is not what is wrong."""
    if limit.most == MOST and not (isinstance(value, int | float) and value > MOST):
        return dataclasses.replace(limit, most=None)
    return limit


def whole(least: int, most: int = MOST) -> Range:
    """Whole numbers that int32 holds."""
    return Range(least, most)


# Texts that may be empty: one id a cell, a cell of nothing, a role without a column.
EMPTY = ("data.files.separators", "data.files.missing", "data.files.columns", "data.files.item_columns", "columns")

RANGES: Mapping[str, Range] = types.MappingProxyType({
    "data.seed": whole(0, SEEDS),
    "data.num_negatives": whole(0),
    "data.num_users": whole(1),
    "data.max_bad_fraction": Range(0, 1),
    "data.preprocessing.core": whole(0),
    "data.preprocessing.min_rows": whole(0),
    "data.preprocessing.max_history": whole(0),
    "data.preprocessing.min_history": whole(0),
    "data.files.max_row_bytes": whole(1),
    "data.files.max_expansion": whole(1),
    "data.prefetch": whole(0),
    "data.threads": whole(1),
    "text.input_length": whole(5),
    "text.eval_batches": whole(1),
    "text.eval_batch_size": whole(1),
    "pretrain.vocab_size": whole(1),
    "pretrain.d_model": whole(1),
    "pretrain.d_kv": whole(1),
    "pretrain.d_ff": whole(1),
    "pretrain.num_layers": whole(1),
    "pretrain.num_decoder_layers": whole(1),
    "pretrain.num_heads": whole(1),
    "pretrain.steps": whole(1),
    "pretrain.batch_size": whole(1),
    "pretrain.learning_rate": Range(above=0),
    "pretrain.warmup": whole(0),
    "pretrain.weight_decay": Range(0),
    "pretrain.seed": whole(0, SEEDS),
    "null_space.energy": Range(0, 1),
    "null_space.rank": Range(0, MOST, share=True),
    "null_space.threshold": Range(0),
    "null_space.min_share": Range(above=0, below=1),
    "null_space.max_directions": whole(1),
    "null_space.memory_limit": Range(1),
    "null_space.batches": whole(1),
    "null_space.batch_size": whole(1),
    "items.added_loss": Range(above=0),
    "items.levels": Range(1, 16),
    "items.codebook_size": Range(2, 65_536),
    "items.capacity_factor": Range(1),
    "items.max_length": whole(1),
    "items.length_buckets": whole(1),
    "items.length_window": whole(1),
    "gems.rank": Range(1, MOST, share=True),
    "gems.task_rank": Range(0, MOST, share=True),
    "gems.refresh_every": whole(1),
    "gems.scale": Range(above=0),
    "lora.rank": whole(1),
    "lora.alpha": Range(above=0),
    "orbit.max_distance": Range(above=0),
    "orbit.share": Range(above=0, most=1),
    "mesh.fsdp": whole(1),
    "mesh.tensor": whole(1),
    "mesh.task": whole(1),
    "train.steps": whole(1),
    "train.batch_size": whole(1),
    "train.accumulate": whole(1),
    "train.temperature": Range(1),
    "train.learning_rate": Range(above=0),
    "train.item_learning_rate": Range(0),
    "train.other_learning_rate": Range(0),
    "train.warmup": whole(0),
    "train.weight_decay": Range(0),
    "train.clip": Range(above=0),
    "train.loss_chunk": whole(1),
    "train.text_task_weight": Range(above=0),
    "train.text_task_rows": whole(1),
    "train.dropout": Range(0, below=1),
    "train.seed": whole(0, SEEDS),
    "train.log_every": whole(1),
    "train.eval_every": whole(0),
    "train.eval_rows": whole(1),
    "train.patience": whole(0),
    "train.checkpoint_every": whole(0),
    "train.keep_checkpoints": whole(1),
    "train.max_non_finite": whole(1),
    "train.hang_after": Range(0),
    "train.profile": whole(1),
    "evaluate.beams": whole(20),  # metrics are of the first 20 items
    "evaluate.batch_size": whole(1),
    "evaluate.rows": whole(1),
    "evaluate.samples": whole(0),
    "evaluate.continuations": whole(0),
    "evaluate.sasrec.width": whole(1),
    "evaluate.sasrec.layers": whole(1),
    "evaluate.sasrec.heads": whole(1),
    "evaluate.sasrec.dropout": Range(0, below=1),
    "evaluate.sasrec.max_length": whole(1),
    "evaluate.sasrec.batch_size": whole(1),
    "evaluate.sasrec.learning_rate": Range(above=0),
    "evaluate.sasrec.epochs": whole(1),
    "evaluate.sasrec.patience": whole(1),
    "evaluate.sasrec.seed": whole(0, SEEDS),
    "evaluate.tiger.width": whole(1),
    "evaluate.tiger.layers": whole(1),
    "evaluate.tiger.heads": whole(1),
    "evaluate.tiger.dropout": Range(0, below=1),
    "evaluate.tiger.levels": whole(1, 16),
    "evaluate.tiger.codebook_size": whole(2, 65_536),
    "evaluate.tiger.max_length": whole(1),
    "evaluate.tiger.batch_size": whole(1),
    "evaluate.tiger.learning_rate": Range(above=0),
    "evaluate.tiger.epochs": whole(1),
    "evaluate.tiger.patience": whole(1),
    "evaluate.tiger.valid_rows": whole(1),
    "evaluate.tiger.beams": whole(20),
    "evaluate.tiger.seed": whole(0, SEEDS),
    "evaluate.two_tower.temperature": Range(above=0),
    "evaluate.two_tower.batch_size": whole(2),
    "evaluate.two_tower.learning_rate": Range(above=0),
    "evaluate.two_tower.epochs": whole(1),
    "evaluate.two_tower.patience": whole(1),
    "evaluate.two_tower.seed": whole(0, SEEDS),
    "study.seeds": whole(1),
    "study.rest_seeds": whole(1),
    "study.grid": Range(above=0),
    "study.item_grid": Range(above=0),
    "study.valid_rows": whole(0),
    "study.budget": Range(above=0),
})  # fmt: skip


CHOICES: Mapping[str, Callable[[], tuple[str, ...]]] = types.MappingProxyType(
    {"data.name": registry.names, "train.method": lambda: tuple(METHODS)}
)


def wrong_fields(options: Any, prefix: str = "") -> Iterator[str]:
    """Says what is wrong with the fields of a dataclass and of those in it, a sentence each.

    Args:
      options: an instance.
      prefix: its dotted name and a dot.
    """
    kind: Any = type(options)
    hints = hints_of(kind)
    for entry in dataclasses.fields(options):
        name, value = prefix + entry.name, getattr(options, entry.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            yield from wrong_fields(value, name + ".")
        elif said := wrong_value(name, hints[entry.name], value):
            yield said


@functools.cache
def hints_of(kind: Any) -> dict[str, Any]:
    """The types of a dataclass's fields."""
    return typing.get_type_hints(kind)


def wrong_value(name: str, hint: Any, value: Any) -> str | None:
    """Says what is wrong with a value of a field; ``None`` where nothing is.

    Example:
      >>> wrong_value("train.steps", int, 0)
      'train.steps must be a whole number from 1 on, got 0'
      >>> wrong_value("train.schedule", Literal["cosine", "linear"], "cosin")
      "train.schedule must be one of cosine, linear, got 'cosin'; did you mean 'cosine'?"
    """
    if name in CHOICES:
        hint = Literal[CHOICES[name]()]
    limit = RANGES.get(name)
    if _fits(hint, value, limit, name in EMPTY):
        return None
    shown = repr(value)
    shown = shown if len(shown) <= _SHOWN else shown[:_SHOWN] + "..."
    near = difflib.get_close_matches(str(value)[:_SHOWN], _choices(hint), n=1, cutoff=0.5)
    hint_at = f"; did you mean {near[0]!r}?" if near else ""
    if name == "data.files.interactions" and isinstance(value, list | tuple):
        hint_at = "; files of the same columns are a folder or a pattern (logs/*.csv), others are made one file first"
    limit = limit and _shown_range(limit, value)
    return f"{name} must be {_words(hint, limit)}, got {shown}{hint_at}"


def _fits(hint: Any, value: Any, limit: Range | None, empty: bool = False) -> bool:
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(part, value, limit, empty) for part in parts)
    if origin is Literal:
        return isinstance(value, str) and value in parts
    if origin in (tuple, list):
        if not isinstance(value, tuple | list):
            return False
        kinds = [parts[0]] * len(value) if origin is list or parts[-1] is ... else parts
        return len(kinds) == len(value) and all(_fits(k, v, limit, empty) for k, v in zip(kinds, value, strict=True))
    if origin is dict:
        return isinstance(value, Mapping) and all(
            isinstance(key, str) and _fits(parts[1], each, limit, empty) for key, each in value.items()
        )
    if hint in (int, float):
        if isinstance(value, bool) or not isinstance(value, int if hint is int else int | float):
            return False
        finite = abs(value) <= sys.float_info.max  # nan is not, nor is an integer that no float holds
        return finite and (limit is None or limit.holds(value))
    if hint is str:
        return isinstance(value, str) and (empty or bool(value)) and "\0" not in value
    if dataclasses.is_dataclass(hint):
        return isinstance(value, Mapping)
    return hint is Any or isinstance(value, hint)


def _words(hint: Any, limit: Range | None) -> str:
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        kinds = [part for part in parts if part is not type(None) and not (part is float and int in parts)]
        words = [_words(part, limit) for part in kinds]
        return ", or ".join(words + (["null"] if type(None) in parts else []))
    if origin is Literal:
        return "one of " + ", ".join(map(str, parts))
    if origin in (tuple, list):
        count = "" if origin is list or parts[-1] is ... else f"{len(parts)} values, "
        return f"a list, {count}each {_words(parts[0], limit)}"
    if origin is dict:
        return f"a mapping of names, each to {_words(parts[1], limit)}"
    if hint in (int, float):
        number = "a whole number" if hint is int else "a number"
        return f"{number} {limit}" if limit else number
    if hint is str:
        return "text that is not empty"
    return "true or false" if hint is bool else "a mapping of fields"


def _choices(hint: Any) -> list[str]:
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    return [choice for part in get_args(hint) for choice in _choices(part)]


def refuse(wrong: list[str]) -> None:
    """Raises a ``ValueError`` of all that is wrong, unless nothing is."""
    if len(wrong) == 1:
        raise ValueError(wrong[0])
    if wrong:
        raise ValueError("\n  ".join([f"{len(wrong)} fields of the configuration cannot be:", *wrong]))
