"""Whether a run's step takes projected gradients, and how an update is computed in parts."""

from typing import Any

import jax
from jax.sharding import NamedSharding

from gems_jax.config.gradients import is_projected
from gems_jax.config.run import Config
from gems_jax.config.train import TrainConfig
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
    devices = max((_size(sharding) for sharding in shardings if sharding is not None), default=1)
    return is_projected(config.train, config.gems, sum(sizes), devices)


def _size(sharding: Any) -> int:
    """Devices of a sharding; of a mesh that is none of this machine's, too."""
    return int(sharding.mesh.size) if isinstance(sharding, NamedSharding) else len(sharding.device_set)


def batches_an_update(train: TrainConfig, projected: bool) -> int:
    """Batches that an update takes, each a step of its own: the parts of ``train.accumulate``.

    Projected gradients take one whole batch, whose parts follow each other inside the step, so that a refresh, which
    needs several passes of the model, sees all of them in each.

    Example:
      >>> from gems_jax.config.train import TrainConfig
      >>> batches_an_update(TrainConfig(accumulate=4), False), batches_an_update(TrainConfig(accumulate=4), True)
      (4, 1)
    """
    return 1 if projected else train.accumulate
