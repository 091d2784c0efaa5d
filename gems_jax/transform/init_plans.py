"""The plans that transforms make in ``init``, however deep in chains, partitions and wrappers they are.

A plan is more than its state shows: no array tells which axes make a kernel's matrix, what ranks were asked for or why
a leaf is left out. And optax's chains, partitions and wrappers hide the transforms inside them, each of which gets
parameters of its own. So the one way to every plan is to run ``init``, which tells it to whoever listens.
"""

import contextvars
import warnings
from typing import Any, NamedTuple

import jax

from gems_jax.boxes import unboxed
from gems_jax.transform.plan import Plan
from gems_jax.transform.settings import Settings
from gems_jax.types import PyTree


class InitPlan(NamedTuple):
    """A plan made by a transform's ``init``: for what unboxed structure and shapes, and the shapes of the state."""

    settings: Settings
    plan: Plan
    treedef: Any
    shapes: tuple[tuple[int, ...], ...]
    state: PyTree


_LISTENING: contextvars.ContextVar[list[InitPlan] | None] = contextvars.ContextVar("plans", default=None)


def init_shapes(tx: Any, params: PyTree) -> tuple[PyTree, list[InitPlan]]:
    """Shapes of ``tx.init(params)``, and the plans that it makes; nothing is run.

    Args:
      tx: any optax transform.
      params: arrays or their shapes.
    """
    plans: list[InitPlan] = []
    token = _LISTENING.set(plans)
    try:
        return jax.eval_shape(lambda tree: tx.init(tree), params), plans
    finally:
        _LISTENING.reset(token)


def tell_plan(settings: Settings, plan: Plan, params: PyTree, state: PyTree) -> None:
    """Tells `init_shapes` of a plan; with nobody to tell, warns of what it leaves out."""
    plans = _LISTENING.get()
    if plans is not None:
        shapes = tuple(tuple(leaf.shape) for leaf in jax.tree.leaves(params))
        sizes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
        plans.append(InitPlan(settings, plan, jax.tree.structure(unboxed(params)), shapes, sizes))
    elif plan.unprotected:
        shown = "; ".join(f"{path!r}: {plan.left_out[path]}" for path in plan.unprotected[:5])
        more = f"; and {len(plan.unprotected) - 5} more" if len(plan.unprotected) > 5 else ""
        warnings.warn(
            f"{len(plan.unprotected)} kernels get neither subspaces nor the null space's protection: {shown}{more}; "
            "name their axes with matrix_dims, or freeze them",
            stacklevel=4,
        )
