"""The optimiser that a configuration names."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from gems_jax import baselines
from gems_jax.config.run import Config, GemsConfig, TrainConfig
from gems_jax.linalg.matrix_dims import stacked_matrix_dims
from gems_jax.null_space.space import NullSpace, constrain_to_null_space
from gems_jax.task_grads import merge_tasks
from gems_jax.training.optimiser.clipping import clip_tasks
from gems_jax.training.optimiser.guard import refuse_not_finite
from gems_jax.training.optimiser.rates import GROUPS, groups, is_item_row, schedule
from gems_jax.transform import gates
from gems_jax.transform.gems import gems
from gems_jax.transform.presets import released
from gems_jax.transform.wrappers import accumulate

PyTree = Any

# Baselines that merge the tasks' gradients in their own way, for AdamW.
_MERGING: dict[str, Callable[..., optax.GradientTransformationExtraArgs]] = {
    "pcgrad": baselines.pcgrad,
    "cagrad": baselines.cagrad,
    "nash-mtl": baselines.nash_mtl,
    "uncertainty": baselines.uncertainty,
}


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


def needs_null_space(config: Config) -> bool:
    """Whether a run's optimiser takes a null space."""
    method = config.train.method
    return method == "adamw-constrained" or (method in ("gems", "released") and config.gems.null_space)


def is_constrained(config: Config) -> bool:
    """Whether a run's updates are kept in the null space it takes: the released optimiser lets Adam lead out of it."""
    return needs_null_space(config) and config.train.method != "released"


def scales_itself(config: TrainConfig) -> bool:
    """Whether a method's updates have their learning rates in them.

    Those of the released optimiser do, since its decay works on what the update has made; all others are linear in the
    rates, which the step multiplies in (`gems_jax.training.optimiser.rates.scaled`).
    """
    return config.method == "released"


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
    """The method for stacked gradients ``[T, *shape]``, with a learning rate of 1: see `scales_itself`.

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

    def adam(decay: float) -> Callable[[str], optax.GradientTransformation]:
        return lambda group: optax.chain(
            optax.scale_by_adam(),
            optax.add_decayed_weights(decay if group == "kernels" else 0.0),
        )

    if train.method == "gems":
        if config.gems.null_space and null_space is None:
            raise ValueError("gems.null_space is set but there is no null space; calibrate, or unset it")
        options = config.gems
        return gems(
            1.0,
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
            fallback=optax.scale_by_adam(),
            gate=make_gate(options, num_tasks),
            null_space=null_space if options.null_space else None,
            constraint=options.constraint,
            weight_decay=train.weight_decay,
            mask=lambda params: jax.tree.map(lambda group: group == "kernels", groups(params)),
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
        relative = {
            "kernels": 1.0,
            "items": train.item_learning_rate / train.learning_rate,
            "others": train.other_learning_rate / train.learning_rate,
        }
        rates = optax.partition({group: optax.scale(factor) for group, factor in relative.items()}, groups)
        return optax.with_extra_args_support(optax.chain(optimiser, rates))
    adamw = optax.partition({group: adam(train.weight_decay)(group) for group in GROUPS}, groups)
    if train.method in _MERGING:
        return _MERGING[train.method](optax.chain(adamw, optax.scale(-1.0)), num_tasks=num_tasks)
    parts = [merge_tasks(), adamw]
    if train.method == "adamw-constrained":
        if null_space is None:
            raise ValueError("train.method adamw-constrained needs a null space; calibrate first")
        parts.append(constrain_to_null_space(null_space, stacked_matrix_dims))
    parts.append(optax.scale(-1.0))
    return optax.with_extra_args_support(optax.chain(*parts))
