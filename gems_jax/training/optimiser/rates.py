"""Learning rates by kind of leaf, given to the compiled step as numbers: runs that differ in them share a program."""

from typing import Any

import jax
import numpy as np
import optax

from gems_jax.config.own_rates import kernel_rate
from gems_jax.config.train import TrainConfig
from gems_jax.leaf_path import leaf_path
from gems_jax.types import PyTree

GROUPS = ("kernels", "items", "others")


def is_item_row(path: str) -> bool:
    """Whether a leaf holds the rows of added items."""
    return path.startswith(("item_embedding", "item_head"))


def groups(tree: PyTree) -> PyTree:
    """Which of `GROUPS` each leaf belongs to.

    Example:
      >>> groups({"item_embedding": {"embedding": 0}, "encoder": {"kernel": 0, "scale": 0}})
      {'encoder': {'kernel': 'kernels', 'scale': 'others'}, 'item_embedding': {'embedding': 'items'}}
    """

    def label(path: tuple[Any, ...], _: Any) -> str:
        name = leaf_path(path).removeprefix("model/")
        if is_item_row(name):
            return "items"
        return "kernels" if name.endswith("kernel") or name.startswith("adapters/") else "others"

    return jax.tree_util.tree_map_with_path(label, tree)


def peak_rates(config: TrainConfig) -> np.ndarray:
    """Highest learning rate of each of `GROUPS`, float32 ``[3]``.

    Example:
      >>> peak_rates(TrainConfig(learning_rate=0.5, item_learning_rate=0.25, other_learning_rate=2.0)).tolist()
      [0.5, 0.25, 2.0]
    """
    return np.array([kernel_rate(config), config.item_learning_rate, config.other_learning_rate], np.float32)


def schedule(config: TrainConfig, peak: float = 1.0) -> optax.Schedule:
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


def scaled(updates: PyTree, rates: jax.Array) -> PyTree:
    """Updates times the learning rate of their group.

    Args:
      updates: made with a learning rate of 1.
      rates: float32 ``[3]``, one of each of `GROUPS`.
    """
    return jax.tree.map(
        lambda update, group: update * rates[GROUPS.index(group)].astype(update.dtype), updates, groups(updates)
    )
