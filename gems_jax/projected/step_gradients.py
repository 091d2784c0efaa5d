"""The gradients of one step: products with the bases in force, and with new ones where these are refreshed."""

from typing import Any

import jax
import jax.numpy as jnp

from gems_jax.linalg.stacks import exchanged
from gems_jax.projected.model_passes import Model, ServedGroup
from gems_jax.projected.packed_bases import SKETCH
from gems_jax.projected.passes import Passed
from gems_jax.projected.step_passes import inside, last_pass, outside
from gems_jax.transform.in_turn import once
from gems_jax.transform.low_rank_gradient import LowRankGradient
from gems_jax.transform.state_rows import StateRows
from gems_jax.types import PyTree


def gradients(model: Model, counts: jax.Array | None) -> tuple[Passed, dict[int, Any]]:
    """The pass of this step with the bases in force, and all leaves' gradients.

    Args:
      model: see `Model`.
      counts: ``[T]`` tokens per task, or ``None``.

    Returns:
      ``(passed, grads)``: by leaf, ``[T, *shape]`` or a `LowRankGradient`.
    """
    served = model.served
    settings, state = served.settings, served.state
    rows = StateRows.read(state, served.entry.treedef, settings)
    groups = [ServedGroup.of(kernels, served.leaves, rows.branch(kernels, settings)) for kernels in served.groups]
    if not groups:
        passed = model.run({})
        return passed, dict(passed.grads)
    key = jax.random.fold_in(jax.random.key(settings.seed), state.count)
    sketches = [_sketch(group.bases[0], jax.random.fold_in(key, n)) for n, group in enumerate(groups)]
    last = last_pass(model, groups, sketches, counts)

    grads: dict[int, Any] = dict(last.passed.grads)
    there = last.number
    for group, sketch, packed, done, products, asked, waiting in zip(
        groups, sketches, last.bases, last.done, last.products, last.decided.asked, last.decided.waiting, strict=True
    ):
        # Arranged anew one group after the other, each in what the one before has left.
        (wide, own), packed = _once(there, (products, packed))
        (wide, own), bases = exchanged((wide, own)), packed.bases
        shared, there = inside(wide), outside(bases[0], sketch, wide)
        # What no task branch can wait for stays as it was.
        waiting = jnp.concatenate([waiting, group.pending[len(waiting) :]])
        fields = [(shared, 1), (own, 1), (there, 1), (bases[0], 0), (bases[1], 1)]
        fields += [(done, 1), (asked & ~done, 1), (waiting, 1)]
        columns = [group.by_leaf(x, leading) for x, leading in fields]
        grads |= {i: LowRankGradient(*(column[i] for column in columns)) for i in group.leaves}
    return last.passed, grads


def _sketch(basis: jax.Array, key: jax.Array) -> jax.Array:
    """``Z: [k, p, z]`` with ``E[Z Z^T] = 1``."""
    return jax.random.rademacher(key, (*basis.shape[:-1], SKETCH), basis.dtype) * SKETCH**-0.5


def _once(there: jax.Array, tree: PyTree) -> PyTree:
    return once(there, tree, jax.tree.map(jnp.zeros_like, tree))
