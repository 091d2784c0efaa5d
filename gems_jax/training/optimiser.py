"""The optimiser that a configuration names."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from gems_jax import baselines, gates
from gems_jax.leaf_path import leaf_path
from gems_jax.matrix_dims import stacked_matrix_dims
from gems_jax.null_space import NullSpace, constrain_to_null_space
from gems_jax.presets import released
from gems_jax.task_grads import merge_tasks
from gems_jax.training.clipping import clip_tasks
from gems_jax.training.config import Config, GemsConfig, TrainConfig
from gems_jax.training.guard import refuse_not_finite
from gems_jax.transform import gems
from gems_jax.wrappers import accumulate

PyTree = Any

# Baselines that merge the tasks' gradients in their own way, for AdamW.
_MERGING: dict[str, Callable[..., optax.GradientTransformationExtraArgs]] = {
    "pcgrad": baselines.pcgrad,
    "cagrad": baselines.cagrad,
    "nash-mtl": baselines.nash_mtl,
    "uncertainty": baselines.uncertainty,
}


def is_item_row(path: str) -> bool:
    """Whether a leaf holds the rows of added items."""
    return path.startswith(("item_embedding", "item_head"))


def is_trained(path: str, config: TrainConfig) -> bool:
    """Whether a leaf trains: kernels and item rows do, all else by option."""
    if is_item_row(path):
        return True
    if path.startswith(("token_embedding", "lm_head")):
        return config.train_embeddings
    if path.endswith("scale"):
        return config.train_norms
    if "relative_bias" in path:
        return config.train_positions
    return True


def schedule(config: TrainConfig, peak: float) -> optax.Schedule:
    """Linear warm-up to ``peak``, then the decay the configuration names."""
    rest = max(config.steps - config.warmup, 1)
    decay = {
        "constant": lambda: optax.constant_schedule(peak),
        "linear": lambda: optax.linear_schedule(peak, 0.0, rest),
        "cosine": lambda: optax.cosine_decay_schedule(peak, rest),
    }[config.schedule]()
    if config.warmup == 0:
        return decay
    # From step 1 of 1 + warmup, so that the first update is not lost.
    return optax.join_schedules(
        [optax.linear_schedule(peak / (config.warmup + 1), peak, config.warmup), decay], [config.warmup]
    )


def _groups(tree: PyTree) -> PyTree:
    """Which learning rate a leaf takes."""

    def label(path: tuple[Any, ...], _: Any) -> str:
        name = leaf_path(path).removeprefix("model/")
        if is_item_row(name):
            return "items"
        return "kernels" if name.endswith("kernel") or name.startswith("adapters/") else "others"

    return jax.tree_util.tree_map_with_path(label, tree)


def needs_null_space(config: Config) -> bool:
    """Whether a run's optimiser takes a null space."""
    method = config.train.method
    return method == "adamw-constrained" or (method in ("gems", "released") and config.gems.null_space)


def is_constrained(config: Config) -> bool:
    """Whether a run's updates are kept in the null space it takes: the released optimiser lets Adam lead out of it."""
    return needs_null_space(config) and config.train.method != "released"


def make_gate(config: GemsConfig, num_tasks: int) -> gates.Gate:
    """The gate a configuration names."""
    if config.gate == "heuristic":
        return gates.heuristic()
    return gates.learned() if config.gate == "learned" else gates.constant([1.0] * num_tasks)


def make_optimiser(
    config: Config, num_tasks: int, null_space: NullSpace | None
) -> optax.GradientTransformationExtraArgs:
    """The whole optimiser of a run: accumulation, refusal of what is not finite, clipping and the method.

    Args and errors as of `make_method`, whose call it has.
    """
    train = config.train
    tx = make_method(config, num_tasks, null_space)
    if train.clip is not None:
        tx = optax.chain(clip_tasks(train.clip, train.clip_by), tx)
    tx = refuse_not_finite(tx, num_tasks)
    if train.accumulate < 1:
        raise ValueError(f"train.accumulate must be at least 1, got {train.accumulate}")
    return tx if train.accumulate == 1 else accumulate(tx, train.accumulate, num_tasks)


def make_method(config: Config, num_tasks: int, null_space: NullSpace | None) -> optax.GradientTransformationExtraArgs:
    """The method for stacked gradients ``[T, *shape]``, learning rates included.

    Args:
      config: sections ``train`` and ``gems``.
      num_tasks: ``T``.
      null_space: needed by ``gems`` and ``released`` with ``gems.null_space`` and by ``adamw-constrained``.

    Returns:
      An optax transform, the same call for every method.

    Raises:
      ValueError: a method that needs a null space without one; ``released`` with a rank that is a share.
    """
    train = config.train
    relative = {
        "kernels": 1.0,
        "items": train.item_learning_rate / train.learning_rate,
        "others": train.other_learning_rate / train.learning_rate,
    }

    def adam(decay: float) -> Callable[[str], optax.GradientTransformation]:
        return lambda group: optax.chain(
            optax.scale_by_adam(),
            optax.add_decayed_weights(decay if group == "kernels" else 0.0),
            optax.scale(relative[group]),
        )

    if train.method == "gems":
        if config.gems.null_space and null_space is None:
            raise ValueError("gems.null_space is set but there is no null space; calibrate, or unset it")
        options = config.gems
        fallback = optax.partition({group: adam(0.0)(group) for group in relative}, _groups)
        return gems(
            schedule(train, train.learning_rate),
            num_tasks=num_tasks,
            rank=options.rank,
            task_rank=options.task_rank,
            side=options.side,
            refresh_every=options.refresh_every,
            decomposition=options.decomposition,
            signs=options.signs,
            moments=options.moments,
            complementary=options.complementary,
            stagger=options.stagger,
            scale=options.scale,
            fallback=fallback,
            gate=make_gate(options, num_tasks),
            null_space=null_space if options.null_space else None,
            constraint=options.constraint,
            weight_decay=train.weight_decay,
            mask=lambda params: jax.tree.map(lambda group: group == "kernels", _groups(params)),
            matrix_dims=stacked_matrix_dims,
        )
    if train.method == "released":
        if not isinstance(config.gems.rank, int):
            raise ValueError(f"train.method released needs a whole number as gems.rank, got {config.gems.rank}")
        if config.gems.null_space and null_space is None:
            raise ValueError("gems.null_space is set but there is no null space; calibrate, or unset it")
        optimiser = released(
            schedule(train, train.learning_rate),
            num_tasks=num_tasks,
            rank=config.gems.rank,
            gap=config.gems.refresh_every,
            scale=config.gems.scale,
            weight_decay=train.weight_decay,
            null_space=null_space if config.gems.null_space else None,
            matrix_dims=stacked_matrix_dims,
            gate=make_gate(config.gems, num_tasks),
        )
        rates = optax.partition({group: optax.scale(factor) for group, factor in relative.items()}, _groups)
        return optax.with_extra_args_support(optax.chain(optimiser, rates))
    if train.method in _MERGING:
        adamw = optax.partition({group: adam(train.weight_decay)(group) for group in relative}, _groups)
        rate = optax.scale_by_learning_rate(schedule(train, train.learning_rate))
        return _MERGING[train.method](optax.chain(adamw, rate), num_tasks=num_tasks)
    parts = [merge_tasks(), optax.partition({group: adam(train.weight_decay)(group) for group in relative}, _groups)]
    if train.method == "adamw-constrained":
        if null_space is None:
            raise ValueError("train.method adamw-constrained needs a null space; calibrate first")
        parts.append(constrain_to_null_space(null_space, stacked_matrix_dims))
    parts.append(optax.scale_by_learning_rate(schedule(train, train.learning_rate)))
    return optax.with_extra_args_support(optax.chain(*parts))
