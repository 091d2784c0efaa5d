"""The methods that a study compares, each as a few fields of one configuration."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from gems_jax.config.methods import GALORE, METHODS
from gems_jax.config.run import Config

# Learning rates of kernels and of item rows; ``None``: that of the configuration.
Rates = tuple[float, float | None]


@dataclasses.dataclass(frozen=True)
class StudyMethod:
    """A method of a study.

    Attributes:
      label: for readers.
      changes: fields of the study's configuration, dotted, and their values.
      whole_rank: whether ``gems.rank`` must be a number of directions; a share is then taken of the model's width.
      strength_of: the method that this is, held to the base model more or less; empty: a method of its own.
      rate_of: the method of `gems_jax.config.methods.METHODS` whose learning rate it has where none is given.
    """

    label: str
    changes: Mapping[str, Any]
    whole_rank: bool = False
    strength_of: str = ""
    rate_of: str = "gems"

    @property
    def own_rate(self) -> float:
        """The learning rate of kernels where neither the study nor its configuration gives one."""
        return METHODS[self.rate_of].own_rate.value


def _gems(label: str, **changes: Any) -> StudyMethod:
    named = {name.replace("__", "."): value for name, value in changes.items()}
    return StudyMethod(label, {"train.method": "gems"} | named)


# The released rule for what is protected: directions of the layers' outputs, by eigenvalue.
_RELEASED = {
    "train.method": "released",
    "null_space.side": "out",
    "null_space.energy": None,
    "null_space.rank": None,
    "null_space.threshold": 2e-2,
    "null_space.min_share": None,
    "null_space.unit_norm": False,
}

# Fields that a method of the table needs beside its name. GaLore is spelled out, as studies that are under way have it.
_CHANGES: Mapping[str, Mapping[str, Any]] = {
    "galore": {"train.method": "gems"} | {f"gems.{field}": value for field, value in GALORE.items()},
    "released": _RELEASED,
    # Its directions are of the weights, not of text.
    "osft": {"train.method": "osft", "null_space.max_directions": None, "null_space.unit_norm": False},
}
_VARIANTS = {
    "gems-no-task-subspaces": _gems("GEMS without task subspaces", gems__task_rank=0),
    "gems-no-null-space": _gems("GEMS without the null space", gems__null_space=False),
    "gems-output-null-space": _gems("GEMS, null space of outputs", null_space__side="out"),
    "gems-constant-gates": _gems("GEMS, constant gates", gems__gate="equal"),
    "gems-learned-gates": _gems("GEMS, learned gates", gems__gate="learned"),
    "gems-complementary": _gems("GEMS, complementary bases", gems__complementary=True),
    "gems-recovery": _gems("GEMS with recovery from outside the basis", gems__recovery="fira"),
    "fira": StudyMethod(
        "Fira",
        {"train.method": "gems", "gems.recovery": "fira"} | {f"gems.{field}": value for field, value in GALORE.items()},
        rate_of="galore",
    ),
    "gems-aligned": _gems("GEMS, aligned moments", gems__signs="align"),
    "gems-energy-alone": _gems("GEMS, directions by energy alone", null_space__min_share=None),
    "gems-replay": _gems("GEMS with replay of general text", train__text_task="replay"),
    "gems-distill": _gems("GEMS with distillation on general text", train__text_task="distill"),
    "adamw-replay": StudyMethod(
        "joint AdamW with replay of general text",
        {"train.method": "adamw", "train.text_task": "replay"},
        rate_of="adamw",
    ),
    "adamw-distill": StudyMethod(
        "joint AdamW with distillation on general text",
        {"train.method": "adamw", "train.text_task": "distill"},
        rate_of="adamw",
    ),
    "lora-distill": StudyMethod(
        "LoRA with distillation on general text",
        {"train.method": "lora", "train.text_task": "distill"},
        rate_of="lora",
    ),
}
# How tightly a method holds to the base model, beside the learning rate: the share of directions that are protected at
# least, and the distance beyond which weights are averaged back.
_STRENGTHS = {
    f"{name}-{word}": StudyMethod(
        f"{METHODS[name].label}, {said}", {"train.method": name} | changes, METHODS[name].whole_rank, name, name
    )
    for name, word, said, changes in (
        ("gems", "looser", "20 % protected", {"null_space.min_share": 0.2}),
        ("gems", "tighter", "70 % protected", {"null_space.min_share": 0.7}),
        ("adamw-constrained", "looser", "20 % protected", {"null_space.min_share": 0.2}),
        ("adamw-constrained", "tighter", "70 % protected", {"null_space.min_share": 0.7}),
        ("osft", "looser", "energy .5", {**_CHANGES["osft"], "null_space.energy": 0.5, "null_space.min_share": None}),
        (
            "osft",
            "tighter",
            "energy .95",
            {**_CHANGES["osft"], "null_space.energy": 0.95, "null_space.min_share": None},
        ),
        ("orbit", "looser", "distance 30", {"orbit.max_distance": 30.0}),
        ("orbit", "tighter", "distance 3", {"orbit.max_distance": 3.0}),
    )
}
MAIN = ("adamw", "lora", "galore", "pcgrad", "gems")
REFERENCE = "adamw"


def study_methods() -> dict[str, StudyMethod]:
    """All that a study can compare: the table's methods, those added to it, variants of GEMS, and other strengths."""
    table = {
        name: StudyMethod(method.label, _CHANGES.get(name, {"train.method": name}), method.whole_rank, rate_of=name)
        for name, method in METHODS.items()
    }
    return table | {name: variant for name, variant in (_VARIANTS | _STRENGTHS).items() if name not in table}


def changed(config: Config, changes: Mapping[str, Any]) -> Config:
    """A configuration with some fields changed.

    Args:
      config: any.
      changes: value by dotted field.

    Example:
      >>> changed(Config(), {"train.steps": 7, "gems.rank": 3}).train.steps
      7
    """
    made = config
    for name, value in changes.items():
        section, _, field = name.partition(".")
        made = dataclasses.replace(made, **{section: dataclasses.replace(getattr(made, section), **{field: value})})
    return made


def configured(config: Config, name: str, rates: Rates, seed: int, width: int) -> Config:
    """The configuration of a method's run.

    Args:
      config: of the study.
      name: of the method.
      rates: learning rates of kernels and of item rows; ``None``: that of the configuration.
      seed: of order, dropout and rounding.
      width: of the model, which a rank that must be whole is a share of.

    Returns:
      The study's configuration with nothing changed but this.

    Example:
      >>> made = configured(Config(), "released", (1e-3, None), 2, width=96)
      >>> made.train.method, made.gems.rank, made.train.seed, made.null_space.path
      ('released', 24, 2, 'runs/demo/null_space_out_threshold_0.02')
    """
    method = study_methods()[name]
    made = changed(config, {"train.learning_rate": rates[0], "train.seed": seed})
    if rates[1] is not None:
        made = changed(made, {"train.item_learning_rate": rates[1]})
    made = changed(dataclasses.replace(made, name=method.label), method.changes)
    if method.whole_rank and isinstance(made.gems.rank, float):
        made = changed(made, {"gems.rank": max(1, round(made.gems.rank * width))})
    return changed(made, {"null_space.path": _null_space_path(config, made)})


def _null_space_path(config: Config, made: Config) -> str:
    """Where a run's null space lies: the study's own, or one of another rule beside it."""
    given, wanted = config.null_space, made.null_space
    rule = ("side", "energy", "rank", "threshold", "min_share", "unit_norm")
    of_weights = METHODS[made.train.method].null_space == "weights"
    if not of_weights and all(getattr(given, key) == getattr(wanted, key) for key in rule):
        return given.path
    asked = {key: getattr(wanted, key) for key in rule[1:]}
    how = [f"{key}_{value}" for key, value in asked.items() if value is not None and value is not False]
    return "_".join([given.path, "weights" if of_weights else wanted.side, *how])
