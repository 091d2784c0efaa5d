"""The transform's state before the first step."""

from typing import Any

import jax
import jax.numpy as jnp

from gems_jax.boxes import drop_unfit_boxes, open_if_alone, unboxed
from gems_jax.linalg.sizes import real_dtype
from gems_jax.null_space.constraint import factor_arrays
from gems_jax.transform.branches import lift_inner
from gems_jax.transform.gates import fresh_state
from gems_jax.transform.plan import Plan
from gems_jax.transform.settings import Settings
from gems_jax.transform.state import Diagnostics, GemsState, join_inner, mirror, work_dtype
from gems_jax.types import PyTree


def initial_state(params: PyTree, plan: Plan, settings: Settings) -> GemsState:
    """Zero bases (every branch waits for its first gradient) and fresh inner, fallback and gate states.

    Args:
      params: tree of arrays.
      plan: of the same tree.
      settings: of the transform.

    Returns:
      A `GemsState`, statistics in float32 (float64 for float64 parameters).
    """
    leaves, bare = jax.tree.leaves(params), unboxed(params)
    num_tasks, widest = settings.num_tasks, real_dtype(leaf.dtype for leaf in leaves)
    shared_basis, task_basis, shared_inner, task_inner, pending, previous = {}, {}, {}, {}, {}, {}
    recovered = {}
    for k in plan.kernels:
        if k.rank == 0:
            continue
        dtype, batch = work_dtype(leaves[k.index].dtype), k.batch_shape
        shared_basis[k.index] = jnp.zeros((*batch, k.kept, k.rank), dtype)
        init, _ = lift_inner(settings.inner, len(batch))
        shared_inner[k.index] = init(jnp.zeros((*batch, k.rank, k.other), dtype))
        exists = jnp.arange(1 + num_tasks) <= (num_tasks if k.task_rank else 0)
        pending[k.index] = jnp.broadcast_to(exists.reshape(-1, *(1,) * len(batch)), (1 + num_tasks, *batch))
        if settings.recovery != "none":
            recovered[k.index] = jnp.zeros(batch, real_dtype([dtype]))
        if k.task_rank:
            low = jnp.zeros((num_tasks, *batch, k.task_rank, k.other), dtype)
            task_basis[k.index] = jnp.zeros((num_tasks, *batch, k.kept, k.task_rank), dtype)
            init, _ = lift_inner(settings.inner, 1 + len(batch))
            task_inner[k.index] = init(low)
            if settings.gate.needs_progress:
                previous[k.index] = low
    # The fallback sees what it will see in every step: float32, also for bfloat16 parameters.
    others = {i: leaves[i].astype(work_dtype(leaves[i].dtype)) for i in plan.fallback}
    structure = settings.inner_structure()
    null_space = settings.null_space
    return GemsState(
        count=jnp.zeros((), jnp.int32),
        shared_basis=mirror(bare, shared_basis),
        task_basis=mirror(bare, task_basis),
        shared_inner=join_inner(structure, bare, shared_inner),
        task_inner=join_inner(structure, bare, task_inner),
        pending=mirror(bare, pending),
        previous=mirror(bare, previous),
        recovered=mirror(bare, recovered),
        fallback=_initial_fallback(params, others, settings),
        gate=fresh_state(settings.gate, num_tasks, widest),
        null_space={} if null_space is None else factor_arrays(null_space, params),
        diagnostics=_no_diagnostics(num_tasks, widest),
    )


def _initial_fallback(params: PyTree, others: dict[int, jax.Array], settings: Settings) -> PyTree:
    """State of the transform of the other leaves, in the parameters' boxes where it is of their shape."""
    if not jax.tree.leaves(params):
        return settings.fallback.init(params)  # optax's placeholder for the parameters (optax.tree.map_params)
    params = open_if_alone(params)
    return drop_unfit_boxes(settings.fallback.init(mirror(params, others)), params)


def _no_diagnostics(num_tasks: int, dtype: Any) -> Diagnostics:
    # A buffer each: states are donated.
    return Diagnostics(
        gates=jnp.full((num_tasks,), 1 / num_tasks, dtype),
        weights=jnp.zeros((num_tasks,), dtype),
        grad_norms=jnp.zeros((num_tasks,), dtype),
        cosines=jnp.zeros((num_tasks, num_tasks), dtype),
        captured=jnp.zeros((1 + num_tasks,), dtype),
        update_norm=jnp.zeros((), dtype),
        refreshed=jnp.zeros((), jnp.int32),
        failed=jnp.zeros((), jnp.int32),
        waiting=jnp.zeros((), jnp.int32),
        absent=jnp.zeros((num_tasks,), jnp.int32),
        skipped=jnp.zeros((num_tasks,), jnp.int32),
    )
