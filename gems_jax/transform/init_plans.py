"""The plans that transforms make in ``init``, however deep in chains, partitions and wrappers they are.

A plan is more than its state shows: no array tells which axes make a kernel's matrix, what ranks were asked for or why
a leaf is left out. And optax's chains, partitions and wrappers hide the transforms inside them, each of which gets
parameters of its own. So plans stand in the program of ``init``: the step counter of each new state passes through an
operation that only has a name (``jax.ad_checkpoint.checkpoint_name``), and the name bears the plan.
"""

import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.extend import core

from gems_jax.argument_checks import check_transform
from gems_jax.boxes import unboxed
from gems_jax.first_few import first_few
from gems_jax.null_space.few_bits import FewBitsWarning
from gems_jax.transform.plan import Plan
from gems_jax.transform.settings import Settings
from gems_jax.transform.state import GemsState
from gems_jax.types import PyTree


class InitPlan(NamedTuple):
    """A plan made by a transform's ``init``: for what unboxed structure and shapes, and the shapes of the state."""

    settings: Settings
    plan: Plan
    treedef: Any
    shapes: tuple[tuple[int, ...], ...]
    state: PyTree


class _Name(str):
    """The name of an operation, which bears a plan."""

    entry: InitPlan


_UNPROTECTED = "kernels get neither subspaces nor the null space's protection"


def init_shapes(tx: Any, params: PyTree) -> tuple[PyTree, list[InitPlan]]:
    """Shapes of ``tx.init(params)``, and the plans that it makes; nothing is run.

    Args:
      tx: any optax transform.
      params: arrays or their shapes.
    """
    check_transform("tx", tx)
    with warnings.catch_warnings():
        # Said where a state is made; here the plan says it.
        warnings.filterwarnings("ignore", message=rf"\d+ {_UNPROTECTED}")
        warnings.simplefilter("ignore", FewBitsWarning)
        program, state = jax.make_jaxpr(lambda tree: tx.init(tree), return_shape=True)(params)
    return state, list(_plans(program.jaxpr))


def _plans(program: core.Jaxpr) -> Iterator[InitPlan]:
    for equation in program.eqns:
        name = equation.params.get("name")
        if isinstance(name, _Name):
            yield name.entry
        for inner in core.jaxprs_in_params(equation.params):
            yield from _plans(inner)


def bearing_plan(state: GemsState, settings: Settings, plan: Plan, params: PyTree) -> GemsState:
    """A new state in whose program `init_shapes` finds the plan; warns of kernels that are left unprotected."""
    if plan.unprotected:
        shown = first_few((f"{path!r}: {plan.left_out[path]}" for path in plan.unprotected), between="; ")
        warnings.warn(
            f"{len(plan.unprotected)} {_UNPROTECTED}: {shown}; name their axes with matrix_dims, or freeze them",
            stacklevel=4,
        )
    shapes = tuple(tuple(leaf.shape) for leaf in jax.tree.leaves(params))
    sizes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
    name = _Name("plan")
    name.entry = InitPlan(settings, plan, jax.tree.structure(unboxed(params)), shapes, sizes)
    return state._replace(count=checkpoint_name(state.count, name))
