"""Whether a run's step takes projected gradients."""

from typing import Any

import jax

from gems_jax.config.gradients import is_projected
from gems_jax.config.run import Config
from gems_jax.leaf_path import named_leaves
from gems_jax.types import PyTree


def projects(config: Config, params: PyTree) -> bool:
    """Whether a run's gradients are projected, see ``train.gradients``.

    Args:
      config: of the run.
      params: what trains, on its devices, or shapes with a sharding.
    """
    sizes = [leaf.size for path, leaf in named_leaves(params) if path.endswith("kernel")]
    shardings: list[Any] = [leaf.sharding for leaf in jax.tree.leaves(params)]
    devices = max((len(sharding.device_set) for sharding in shardings if sharding is not None), default=1)
    return is_projected(config.train, config.gems, sum(sizes), devices)
