"""Builders of the optimiser of each method of `gems_jax.config.methods.METHODS`, and a way to add methods."""

import dataclasses
import re
from collections.abc import Callable
from typing import TypeAlias

import jax
import optax

from gems_jax import baselines
from gems_jax.config.methods import GALORE, METHODS, TuningMethod
from gems_jax.config.optimiser import GemsConfig
from gems_jax.config.own_rates import kernel_rate
from gems_jax.config.run import Config
from gems_jax.linalg.matrix_dims import stacked_matrix_dims
from gems_jax.null_space.constraint import constrain_to_null_space
from gems_jax.null_space.space import NullSpace
from gems_jax.task_grads import merge_tasks
from gems_jax.training.optimiser.rates import GROUPS, groups, peak_rates, schedule
from gems_jax.transform import gates
from gems_jax.transform.gems import gems
from gems_jax.transform.orbit import orbit
from gems_jax.transform.released import released
from gems_jax.types import PyTree

Transform: TypeAlias = optax.GradientTransformationExtraArgs
# ``(config, number of tasks, the null space it is to use or None) -> transform`` for gradients ``[T, *shape]``.
Builder = Callable[[Config, int, NullSpace | None], Transform]
# ``(optimiser of the merged gradient, *, num_tasks) -> transform``, the call that `gems_jax.baselines` share.
Baseline = Callable[..., Transform]


def adamw(config: Config) -> optax.GradientTransformation:
    """AdamW for a gradient without a task axis, with a learning rate of 1; weight decay on kernels alone."""

    def of_group(group: str) -> optax.GradientTransformation:
        decay = config.train.weight_decay if group == "kernels" else 0.0
        return optax.chain(optax.scale_by_adam(), optax.add_decayed_weights(decay))

    return optax.partition({group: of_group(group) for group in GROUPS}, groups)


def merged_by(baseline: Baseline) -> Builder:
    """A builder of AdamW on what a baseline merges the tasks' gradients to.

    Args:
      baseline: called as ``baseline(inner_tx, num_tasks=T)``, see `gems_jax.baselines`.
    """
    return lambda config, num_tasks, _: baseline(optax.chain(adamw(config), optax.scale(-1.0)), num_tasks=num_tasks)


def _joint(config: Config, num_tasks: int, null_space: NullSpace | None) -> Transform:
    """AdamW on the joint gradient, kept in the null space where there is one."""
    inside = [] if null_space is None else [constrain_to_null_space(null_space, stacked_matrix_dims)]
    return optax.with_extra_args_support(optax.chain(merge_tasks(), adamw(config), *inside, optax.scale(-1.0)))


def make_gate(config: GemsConfig, num_tasks: int) -> gates.Gate:
    """The gate a configuration names."""
    if config.gate == "heuristic":
        return gates.heuristic()
    return gates.learned() if config.gate == "learned" else gates.constant([1.0] * num_tasks)


def _gems(config: Config, num_tasks: int, null_space: NullSpace | None) -> Transform:
    options = dataclasses.asdict(config.gems) | {"gate": make_gate(config.gems, num_tasks), "null_space": null_space}
    return gems(
        1.0,
        num_tasks=num_tasks,
        weight_decay=config.train.weight_decay,
        mask=lambda params: jax.tree.map(lambda group: group == "kernels", groups(params)),
        matrix_dims=stacked_matrix_dims,
        **options,
    )


def _galore(config: Config, num_tasks: int, null_space: NullSpace | None) -> Transform:
    return _gems(dataclasses.replace(config, gems=dataclasses.replace(config.gems, **GALORE)), num_tasks, null_space)


def _released(config: Config, num_tasks: int, null_space: NullSpace | None) -> Transform:
    train, rate = config.train, kernel_rate(config.train)
    optimiser = released(
        schedule(train, rate),
        num_tasks=num_tasks,
        rank=int(config.gems.rank),
        gap=config.gems.refresh_every,
        scale=config.gems.scale,
        weight_decay=train.weight_decay,
        null_space=null_space,
        matrix_dims=stacked_matrix_dims,
        gate=make_gate(config.gems, num_tasks),
    )
    relative = {
        "kernels": 1.0,
        "items": train.item_learning_rate / rate,
        "others": train.other_learning_rate / rate,
    }
    rates = optax.partition({group: optax.scale(factor) for group, factor in relative.items()}, groups)
    return optax.with_extra_args_support(optax.chain(optimiser, rates))


def _orbit(config: Config, num_tasks: int, null_space: NullSpace | None) -> Transform:
    """Joint AdamW, held to the base model; rows of items are new, so that there is nothing to hold them to."""
    train = config.train
    peaks = zip(GROUPS, peak_rates(train).tolist(), strict=True)
    rates = {group: optax.scale_by_learning_rate(schedule(train, peak)) for group, peak in peaks}
    joint = optax.chain(merge_tasks(), adamw(config), optax.partition(rates, groups))

    def held(params: PyTree) -> PyTree:
        return jax.tree.map(lambda group: group != "items", groups(params))

    return orbit(joint, config.orbit.max_distance, share=config.orbit.share, mask=held)


BUILDERS: dict[str, Builder] = {
    "adamw": _joint,
    "lora": _joint,  # of the adapters, which the parameters are then
    "galore": _galore,
    "pcgrad": merged_by(baselines.pcgrad),
    "gems": _gems,
    "cagrad": merged_by(baselines.cagrad),
    "nash-mtl": merged_by(baselines.nash_mtl),
    "uncertainty": merged_by(baselines.uncertainty),
    "mgda": merged_by(baselines.mgda),
    "dwa": merged_by(baselines.dwa),
    "imtl-g": merged_by(baselines.imtl_g),
    "aligned-mtl": merged_by(baselines.aligned_mtl),
    "upgrad": merged_by(baselines.upgrad),
    "adamw-constrained": _joint,
    "osft": _joint,
    "orbit": _orbit,
    "released": _released,
}


def register_method(name: str, build: Builder, method: TuningMethod) -> None:
    """Adds a method, which ``train.method`` and studies of this process then know by its name.

    Args:
      name: that no method has yet.
      build: ``(config, num_tasks, null_space) -> transform`` for stacked gradients ``[T, *shape]``, with a learning
        rate of 1 unless ``method.own_rates``; of a function like those of `gems_jax.baselines`, `merged_by` makes one.
      method: what is known of it before it is built.

    Raises:
      ValueError: the name is taken, or is not of small letters, digits and hyphens: folders of studies are named so.

    Example:
      >>> register_method("mgda", merged_by(baselines.mgda), TuningMethod("my MGDA", "AdamW on my MGDA"))
      Traceback (most recent call last):
      ...
      ValueError: there is a method 'mgda' (MGDA) already; choose another name
    """
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise ValueError(f"the name of a method has small letters, digits and hyphens alone, got {name!r}")
    if name in METHODS:
        raise ValueError(f"there is a method {name!r} ({METHODS[name].label}) already; choose another name")
    METHODS[name], BUILDERS[name] = method, build
