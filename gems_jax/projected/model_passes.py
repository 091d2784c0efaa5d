"""Passes of a model with bases of groups of kernels."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from gems_jax.projected.passes import Bases, Passed, Products, mean_over_parts, run_pass
from gems_jax.projected.served import Served
from gems_jax.transform.branches import BranchState
from gems_jax.transform.plan import Group
from gems_jax.transform.refresh import Bases as GroupBases
from gems_jax.transform.state import gather, scatter
from gems_jax.types import PyTree

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


class ServedGroup(NamedTuple):
    """A group of served kernels in this step: its leaves' numbers, its bases, and what waits ``[1 + T, k]``."""

    kernels: Group
    leaves: tuple[int, ...]
    bases: GroupBases
    pending: jax.Array

    @classmethod
    def of(cls, kernels: Group, leaves: Mapping[int, int], state: BranchState) -> "ServedGroup":
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


def run_groups(
    model: Model, groups: Sequence[ServedGroup], bases: Sequence[GroupBases], across: bool = False
) -> tuple[Passed, list[GroupProducts]]:
    """A pass with bases of all groups, and the groups' products with them."""
    by_leaf: dict[int, Bases] = {}
    for group, these in zip(groups, bases, strict=True):
        by_leaf |= group.bases_by_leaf(these, across)
    passed = model.run(by_leaf)
    return passed, [group.products(passed.products) for group in groups]
