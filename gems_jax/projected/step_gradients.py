"""The gradients of one step: products with the bases in force, and with new ones where these are refreshed."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gems_jax.linalg.orthonormal import matmul
from gems_jax.projected.passes import Bases, Passed, Products, mean_over_parts, run_pass
from gems_jax.projected.power_iteration import Branches, Lows, ModelPasses, iterate
from gems_jax.projected.served import Served
from gems_jax.task_grads import weighted_sum
from gems_jax.transform.active_null_space import ActiveNullSpace
from gems_jax.transform.branches import BranchState
from gems_jax.transform.diagnostics import GradientDiagnostics, diagnose_gradients
from gems_jax.transform.group_gradients import group_gradients
from gems_jax.transform.low_rank_gradient import LowRankGradient
from gems_jax.transform.plan import Group
from gems_jax.transform.random_bases import draw_bases, member_ids
from gems_jax.transform.refresh import Bases as GroupBases
from gems_jax.transform.refresh import NewBases, Refresh, refresh_at, room
from gems_jax.transform.refresh_request import column_masks, projector_of, usable_branches
from gems_jax.transform.state import gather, scatter
from gems_jax.transform.state_rows import StateRows
from gems_jax.types import PyTree

# Random columns that norms and inner products of whole gradients are estimated with.
SKETCH = 8

# ``U^T G`` of a group, of the shared basis ``[T, k, r, q]`` for each task, and of the tasks' own ``[T, k, r_t, q]``.
GroupProducts = tuple[jax.Array, jax.Array | None]


class Model(NamedTuple):
    """Everything that a pass needs but for the bases.

    Attributes:
      served: the program of the loss, and the kernels that are served.
      leaves: of the parameters.
      task_batch: leaves ``[T, B, ...]``, with ``weights`` ``[T, A, B, ...]``.
      has_aux: whether the loss returns a pair.
      spmd_axis_name: mesh axis over which tasks lie.
      weights: ``[T, A]`` of the parts that a batch is cut into, ``None``: it is whole.
    """

    served: Served
    leaves: list[jax.Array]
    task_batch: PyTree
    has_aux: bool
    spmd_axis_name: str | None
    weights: jax.Array | None = None

    def run(self, bases: Mapping[int, Bases]) -> Passed:
        kernels = {self.served.leaves[k.index]: k for k in self.served.kernels}

        def run_part(batch: PyTree) -> Passed:
            aux = self.has_aux, self.spmd_axis_name
            return run_pass(self.served.program, kernels, self.leaves, batch, bases, *aux)

        if self.weights is None:
            return run_part(self.task_batch)
        return mean_over_parts(run_part, self.task_batch, self.weights)


class _Group(NamedTuple):
    """A group of served kernels in this step: its leaves' numbers, its bases, and what waits ``[1 + T, k]``."""

    kernels: Group
    leaves: tuple[int, ...]
    bases: GroupBases
    pending: jax.Array

    @classmethod
    def of(cls, kernels: Group, leaves: Mapping[int, int], state: BranchState) -> "_Group":
        bases = state.shared_basis, state.task_basis
        return cls(kernels, tuple(leaves[k.index] for k in kernels), bases, state.pending)

    def by_leaf(self, x: jax.Array | None, leading: int) -> dict[int, Any]:
        """``[*lead, k, ...]`` taken apart, as ``[*lead, *batch, ...]`` by leaf."""
        if x is None:
            return dict.fromkeys(self.leaves)
        return dict(zip(self.leaves, scatter(x, self.kernels, leading), strict=True))

    def bases_by_leaf(self, bases: GroupBases, across: bool) -> dict[int, Bases]:
        shared, task = self.by_leaf(bases[0], 0), self.by_leaf(bases[1], 1)
        return {i: Bases(shared[i], task[i], across) for i in self.leaves}

    def products(self, by_leaf: Mapping[int, Products]) -> GroupProducts:
        """Those of its kernels, stacked."""

        def stacked(arrays: Sequence[Any]) -> jax.Array:
            shapes = [k.batch_shape for k in self.kernels]
            full = [x.reshape(len(x), *shape, *x.shape[-2:]) for x, shape in zip(arrays, shapes, strict=True)]
            return gather(full, 1, len(shapes[0]))

        mine = [by_leaf[i] for i in self.leaves]
        own = None if self.bases[1] is None else stacked([p.own for p in mine])
        return stacked([p.common for p in mine]), own


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
    groups = [_Group.of(kernels, served.leaves, rows.branch(kernels, settings)) for kernels in served.groups]
    key = jax.random.fold_in(jax.random.key(settings.seed), state.count)
    sketches = [_sketch(group.bases[0], jax.random.fold_in(key, n)) for n, group in enumerate(groups)]

    wide: list[GroupBases] = [
        (jnp.concatenate([group.bases[0], sketch], axis=-1), group.bases[1])
        for group, sketch in zip(groups, sketches, strict=True)
    ]
    passed, wide_products = _run(model, groups, wide)
    seen = [shared[..., -SKETCH:, :] for shared, _ in wide_products]
    products: list[GroupProducts] = [(shared[..., :-SKETCH, :], own) for shared, own in wide_products]

    rests = [
        _outside(group.bases[0], sketch, low[0], z)
        for group, sketch, low, z in zip(groups, sketches, products, seen, strict=True)
    ]
    others = [passed.grads[i] for i in sorted(served.leaves.values()) if i in passed.grads]
    diagnosed = diagnose_gradients([*(low for low, _ in products), *rests, *others], settings.num_tasks, counts, None)
    asked = [_ask(model, *x, diagnosed) for x in zip(groups, products, rests, strict=True)]
    branches = [branch for branch, _ in asked]
    bases, done, products = _refreshed(model, groups, branches, products, diagnosed)

    grads: dict[int, Any] = dict(passed.grads)
    for n, group in enumerate(groups):
        rest = _outside(bases[n][0], sketches[n], products[n][0], seen[n])
        # What no task branch can wait for stays as it was.
        waiting = jnp.concatenate([asked[n][1], group.pending[len(asked[n][1]) :]])
        failed = branches[n].asked & ~done[n]
        fields = [(products[n][0], 1), (products[n][1], 1), (rest, 1), (bases[n][0], 0), (bases[n][1], 1)]
        fields += [(done[n], 1), (failed, 1), (waiting, 1)]
        columns = [group.by_leaf(x, leading) for x, leading in fields]
        grads |= {i: LowRankGradient(*(column[i] for column in columns)) for i in group.leaves}
    return passed, grads


def _run(
    model: Model, groups: Sequence[_Group], bases: Sequence[GroupBases], across: bool = False
) -> tuple[Passed, list[GroupProducts]]:
    """A pass with bases of all groups, and the groups' products with them."""
    by_leaf: dict[int, Bases] = {}
    for group, these in zip(groups, bases, strict=True):
        by_leaf |= group.bases_by_leaf(these, across)
    passed = model.run(by_leaf)
    return passed, [group.products(passed.products) for group in groups]


def _sketch(basis: jax.Array, key: jax.Array) -> jax.Array:
    """``Z: [k, p, z]`` with ``E[Z Z^T] = 1``."""
    return jax.random.rademacher(key, (*basis.shape[:-1], SKETCH), basis.dtype) * SKETCH**-0.5


def _outside(basis: jax.Array, sketch: jax.Array, low: jax.Array, seen: jax.Array) -> jax.Array:
    """``Z^T (1 - U U^T) G`` of ``Z^T G`` and ``U^T G``."""
    return seen - matmul(matmul(sketch.mT, basis), low)


def _ask(
    model: Model, group: _Group, products: GroupProducts, rest: jax.Array, diagnosed: GradientDiagnostics
) -> tuple[Branches, jax.Array]:
    """The branches of a group, those to be replaced marked, and those that must wait, ``[1 + T, k]``."""
    settings, state = model.served.settings, model.served.state
    merged = group_gradients(products[0], rest, diagnosed)
    sizes = merged.sizes() if group.bases[1] is not None else merged._replace(task=None).sizes()
    masks = column_masks(group.kernels, settings.complementary)
    pending = group.pending if group.bases[1] is not None else group.pending[:1]
    wanted = (pending | refresh_at(state.count, settings).due) & room(masks, pending.shape)
    usable = usable_branches(sizes, diagnosed.present)
    active = ActiveNullSpace(settings.null_space, settings.constraint, state.null_space)
    projector = projector_of(active, group.kernels, len(group.bases[0]))
    return Branches(group.bases, wanted & usable, projector, masks, sizes), wanted & ~usable


def _refreshed(
    model: Model,
    groups: list[_Group],
    branches: list[Branches],
    products: list[GroupProducts],
    diagnosed: GradientDiagnostics,
) -> tuple[list[GroupBases], list[jax.Array], list[GroupProducts]]:
    """Bases, which were replaced, and products with them, of all groups."""
    bases, nothing = [b.bases for b in branches], [jnp.zeros_like(b.asked) for b in branches]
    if not branches:
        return bases, nothing, products

    def merged(products: list[GroupProducts]) -> Lows:
        return [(weighted_sum(shared, diagnosed.weights), own) for shared, own in products]

    passes = ModelPasses(
        direct=lambda bases: _run(model, groups, bases)[1],
        merged=merged,
        across=lambda others: merged(_run(model, groups, others, across=True)[1]),
    )

    def refresh(products: list[GroupProducts]) -> Any:
        how = refresh_at(model.served.state.count, model.served.settings)
        if how.method == "random":
            given = zip(branches, groups, strict=True)
            drawn = [_drawn(branch, member_ids(group.kernels), how) for branch, group in given]
            chosen, done = [(shared, task) for shared, task, _ in drawn], [which for *_, which in drawn]
            after = passes.direct(chosen)
        else:
            chosen, done, after = iterate(branches, products, passes, how)
        return chosen, done, [_kept(*x) for x in zip(done, after, products, strict=True)]

    is_asked = jnp.any(jnp.stack([jnp.any(b.asked) for b in branches]))
    return jax.lax.cond(is_asked, refresh, lambda products: (bases, nothing, products), products)


def _drawn(branches: Branches, ids: tuple[int, ...], how: Refresh) -> NewBases:
    numbers = jnp.asarray(ids, jnp.uint32)
    return draw_bases(branches.bases, numbers, branches.asked, branches.projector, branches.masks, how)


def _kept(done: jax.Array, new: GroupProducts, old: GroupProducts) -> GroupProducts:
    """Products with the new bases where they were replaced."""
    shared = jnp.where(done[0][:, None, None], new[0], old[0])
    if new[1] is None or old[1] is None:
        return shared, None
    return shared, jnp.where(done[1:, :, None, None], new[1], old[1])
