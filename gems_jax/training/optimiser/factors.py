"""The null space's factors inside an optimiser state: the only copy of them that a run keeps on its devices."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from gems_jax.null_space.constraint import ConstrainToNullSpaceState
from gems_jax.null_space.space import NullSpace
from gems_jax.transform.state import GemsState
from gems_jax.types import PyTree

_HOLDERS = (GemsState, ConstrainToNullSpaceState)


def held_factors(state: PyTree) -> Mapping[str, Any]:
    """The factors by input name that an optimiser state holds, also inside chains and wrappers; none: empty.

    Example:
      >>> from gems_jax import NullSpace, constrain_to_null_space
      >>> ns = NullSpace.from_moments({"kernel": np.diag([9.0, 1.0])}, rank=1)
      >>> held_factors(constrain_to_null_space(ns).init({"kernel": np.zeros((2, 3))}))["kernel"].shape
      (2, 1)
    """
    holders = [x for x in jax.tree.leaves(state, is_leaf=_is_holder) if _is_holder(x)]
    return next((factors for factors in map(_factors, holders) if factors), {})


def with_factors(state: PyTree, factors: Mapping[str, Any]) -> PyTree:
    """The same state, or tree like it, with these factors where it holds some."""

    def replaced(x: Any) -> Any:
        if not _is_holder(x) or not _factors(x):
            return x
        return x._replace(**{_field(x): dict(factors)})

    return jax.tree.map(replaced, state, is_leaf=_is_holder)


def initial_opt_state(tx: Any, params: PyTree, sharding: PyTree, null_space: NullSpace | None) -> PyTree:
    """``tx.init(params)`` where it belongs; of the factors each device gets its part alone.

    Compiled whole, ``tx.init`` would have the factors as constants: all of them, in every device's program.

    Args:
      tx: the optimiser.
      params: on the mesh.
      sharding: of the state, see `gems_jax.transform.sharding.state_sharding`.
      null_space: that ``tx`` was made with, or ``None``.
    """
    factor_sharding = held_factors(sharding)
    if null_space is None or not factor_sharding:
        return jax.jit(tx.init, out_shardings=sharding)(params)
    without = jax.jit(lambda p: with_factors(tx.init(p), {}), out_shardings=with_factors(sharding, {}))

    def put(name: str, sharding: jax.sharding.Sharding) -> jax.Array:
        basis = np.asarray(null_space.factors[name].basis)
        dtype = jax.dtypes.canonicalize_dtype(basis.dtype)
        # Copies, since states are donated.
        return jax.make_array_from_callback(basis.shape, sharding, lambda part: np.array(basis[part], dtype))

    return _filled(without(params), sharding, {name: put(name, part) for name, part in factor_sharding.items()})


def from_state(null_space: NullSpace, state: PyTree) -> NullSpace:
    """The null space with the arrays of an optimiser state: inside a compiled step these are arguments of it,
    while a null space's own arrays would become constants of the program."""
    held = held_factors(state)
    factors = {
        name: dataclasses.replace(factor, basis=held[name]) if name in held else factor
        for name, factor in null_space.factors.items()
    }
    return dataclasses.replace(null_space, factors=factors)


def _filled(state: PyTree, like: PyTree, factors: Mapping[str, Any]) -> PyTree:
    """``state`` with factors wherever ``like`` holds some."""

    def filled(holder: Any, x: Any) -> Any:
        return holder._replace(**{_field(x): dict(factors)}) if _is_holder(x) and _factors(x) else holder

    return jax.tree.map(lambda x, holder: filled(holder, x), like, state, is_leaf=_is_holder)


def _is_holder(x: Any) -> bool:
    return isinstance(x, _HOLDERS)


def _field(holder: Any) -> str:
    return "null_space" if isinstance(holder, GemsState) else "factors"


def _factors(holder: Any) -> Mapping[str, Any]:
    return getattr(holder, _field(holder))
