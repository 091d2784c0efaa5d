"""Gradient multi-subspace tuning (GEMS) for search and recommendation, in JAX.

``import gems_jax as gj``: the core (task gradients, null space, subspaces, gates, the transform) needs jax and
optax alone; models, items and ranking are imported when first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from gems_jax.leaf_path import leaf_path
from gems_jax.linalg.matrix_dims import MatrixDims, default_matrix_dims, stacked_matrix_dims
from gems_jax.null_space.constraint import constrain_to_null_space, null_space_leak
from gems_jax.null_space.second_moment import SecondMoment
from gems_jax.null_space.space import NullSpace
from gems_jax.task_grads import merge_tasks, task_value_and_grad, task_weights, token_mean
from gems_jax.transform import gates
from gems_jax.transform.gems import STATIC_ARGS, gems, scale_by_gems
from gems_jax.transform.state import GemsState
from gems_jax.version import __version__

if TYPE_CHECKING:
    from gems_jax import baselines, identifiers, items, models
    from gems_jax.items.tokens import ItemIndex
    from gems_jax.null_space.estimate import estimate_null_space, observed_matrix_dims
    from gems_jax.projected.plan import projection_plan
    from gems_jax.projected.task_grads import projected_task_grads
    from gems_jax.ranking import metrics, rank_items
    from gems_jax.serving.recommender import Recommender
    from gems_jax.transform import released as presets
    from gems_jax.transform.orbit import orbit
    from gems_jax.transform.reports import diagnostics, state_bytes
    from gems_jax.transform.sharding import state_sharding
    from gems_jax.transform.wrappers import accumulate, apply_if_finite

# Name -> module (and attribute, where the name is not the module itself); imported at first use.
_LAZY = {
    "baselines": ("gems_jax.baselines", None),
    "models": ("gems_jax.models", None),
    "items": ("gems_jax.items", None),
    "identifiers": ("gems_jax.identifiers", None),
    "presets": ("gems_jax.transform.released", None),
    "metrics": ("gems_jax.ranking.metrics", None),
    "rank_items": ("gems_jax.ranking.rank_items", "rank_items"),
    "ItemIndex": ("gems_jax.items.tokens", "ItemIndex"),
    "Recommender": ("gems_jax.serving.recommender", "Recommender"),
    "estimate_null_space": ("gems_jax.null_space.estimate", "estimate_null_space"),
    "observed_matrix_dims": ("gems_jax.null_space.estimate", "observed_matrix_dims"),
    "diagnostics": ("gems_jax.transform.reports", "diagnostics"),
    "state_bytes": ("gems_jax.transform.reports", "state_bytes"),
    "projected_task_grads": ("gems_jax.projected.task_grads", "projected_task_grads"),
    "projection_plan": ("gems_jax.projected.plan", "projection_plan"),
    "state_sharding": ("gems_jax.transform.sharding", "state_sharding"),
    "accumulate": ("gems_jax.transform.wrappers", "accumulate"),
    "apply_if_finite": ("gems_jax.transform.wrappers", "apply_if_finite"),
    "orbit": ("gems_jax.transform.orbit", "orbit"),
}

__all__ = [
    "STATIC_ARGS",
    "GemsState",
    "ItemIndex",
    "MatrixDims",
    "NullSpace",
    "Recommender",
    "SecondMoment",
    "__version__",
    "accumulate",
    "apply_if_finite",
    "baselines",
    "constrain_to_null_space",
    "default_matrix_dims",
    "diagnostics",
    "estimate_null_space",
    "gates",
    "gems",
    "identifiers",
    "items",
    "leaf_path",
    "merge_tasks",
    "metrics",
    "models",
    "null_space_leak",
    "observed_matrix_dims",
    "orbit",
    "presets",
    "projected_task_grads",
    "projection_plan",
    "rank_items",
    "scale_by_gems",
    "stacked_matrix_dims",
    "state_bytes",
    "state_sharding",
    "task_value_and_grad",
    "task_weights",
    "token_mean",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'gems_jax' has no attribute {name!r}")
    module, attribute = _LAZY[name]
    value = importlib.import_module(module)
    return value if attribute is None else getattr(value, attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
