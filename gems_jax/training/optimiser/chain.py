"""The optimiser that a configuration names: a method, and what stands around it."""

import warnings

import optax

from gems_jax.config.methods import METHODS
from gems_jax.config.own_rates import with_rates
from gems_jax.config.run import Config
from gems_jax.config.train import TrainConfig
from gems_jax.null_space.few_bits import FewBitsWarning
from gems_jax.null_space.space import NullSpace, Sides
from gems_jax.training.optimiser.clipping import clip_tasks
from gems_jax.training.optimiser.guard import refuse_not_finite
from gems_jax.training.optimiser.methods import BUILDERS
from gems_jax.training.optimiser.rates import is_item_row
from gems_jax.transform.wrappers import accumulate
from gems_jax.types import PyTree


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
    needed = METHODS[config.train.method].null_space
    return needed in ("always", "weights") or (needed == "option" and config.gems.null_space)


def null_space_side(config: Config) -> Sides:
    """The side of the kernels on which a run's null space is; both where it is made from the weights."""
    return "both" if METHODS[config.train.method].null_space == "weights" else config.null_space.side


def is_constrained(config: Config) -> bool:
    """Whether a run's updates stay in the null space it takes."""
    return needs_null_space(config) and METHODS[config.train.method].stays_inside


def make_optimiser(
    config: Config, num_tasks: int, null_space: NullSpace | None, projected: bool = False
) -> optax.GradientTransformationExtraArgs:
    """The whole optimiser of a run: accumulation, refusal of what is not finite, clipping and the method.

    Args and errors as of `make_method`, whose call it has. ``projected``: whether gradients are those of
    `gems_jax.projected_task_grads`, which accumulates them itself.
    """
    train = config.train
    tx = make_method(config, num_tasks, null_space)
    if train.clip is not None:
        tx = optax.chain(clip_tasks(train.clip, train.clip_by), tx)
    tx = refuse_not_finite(tx, num_tasks)
    if train.accumulate < 1:
        raise ValueError(f"train.accumulate must be at least 1, got {train.accumulate}")
    return tx if projected or train.accumulate == 1 else accumulate(tx, train.accumulate, num_tasks)


def make_method(config: Config, num_tasks: int, null_space: NullSpace | None) -> optax.GradientTransformationExtraArgs:
    """The method for stacked gradients ``[T, *shape]``, with a learning rate of 1 unless it has its own.

    Args:
      config: sections ``train`` and ``gems``.
      num_tasks: ``T``.
      null_space: of the base model, or ``None`` where the method takes none, see `needs_null_space`.

    Returns:
      An optax transform, the same call for every method.

    Raises:
      ValueError: a method that needs a null space without one; ``released`` with a rank that is a share.
    """
    name = config.train.method
    method = METHODS[name]
    if method.whole_rank and not isinstance(config.gems.rank, int):
        raise ValueError(f"train.method {name} needs a whole number as gems.rank, got {config.gems.rank}")
    takes = needs_null_space(config)
    if takes and null_space is None:
        if method.null_space == "option":
            raise ValueError("gems.null_space is set but there is no null space; calibrate, or unset it")
        raise ValueError(f"train.method {name} needs a null space; calibrate first")
    tx = BUILDERS[name](with_rates(config), num_tasks, null_space if takes else None)
    return _measured(tx) if takes and config.model.dtype != "float32" else tx


def _measured(tx: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """The same, without the warning of parameters of few bits: a run measures what is stored (``leak_stored``)."""

    def init(params: PyTree) -> PyTree:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FewBitsWarning)
            return tx.init(params)

    return optax.GradientTransformationExtraArgs(init, tx.update)
