"""The state's trees taken apart into groups of kernels, and put together again."""

from typing import Any, NamedTuple

import jax

from gems_jax.transform.branches import BranchState
from gems_jax.transform.plan import Group
from gems_jax.transform.settings import Settings
from gems_jax.transform.state import GemsState, entries, gather, join_inner, scatter, split_inner
from gems_jax.types import PyTree


class StateRows(NamedTuple):
    """The state's trees as lists in leaf order, to read groups from and write them back."""

    shared_basis: list[Any]
    task_basis: list[Any]
    shared_inner: list[Any]
    task_inner: list[Any]
    pending: list[Any]
    previous: list[Any]
    recovered: list[Any]

    @classmethod
    def read(cls, state: GemsState, treedef: Any, settings: Settings) -> "StateRows":
        structure = settings.inner_structure()
        return cls(
            entries(state.shared_basis, treedef),
            entries(state.task_basis, treedef),
            split_inner(structure, state.shared_inner, treedef),
            split_inner(structure, state.task_inner, treedef),
            entries(state.pending, treedef),
            entries(state.previous, treedef),
            entries(state.recovered, treedef),
        )

    def branch(self, group: Group, settings: Settings) -> BranchState:
        """A group's kernels, stacked."""
        batch_ndim = len(group[0].batch_shape)

        def collect(rows: list[Any], leading: int) -> PyTree:
            return jax.tree.map(lambda *xs: gather(xs, leading, batch_ndim), *[rows[k.index] for k in group])

        has_tasks = group[0].task_rank > 0
        return BranchState(
            shared_basis=collect(self.shared_basis, 0),
            task_basis=collect(self.task_basis, 1) if has_tasks else None,
            shared_inner=collect(self.shared_inner, 0),
            task_inner=collect(self.task_inner, 1) if has_tasks else None,
            pending=collect(self.pending, 1),
            previous=collect(self.previous, 1) if has_tasks and settings.gate.needs_progress else None,
            recovered=collect(self.recovered, 0) if settings.recovery != "none" else None,
        )

    def write(self, group: Group, branch: BranchState, settings: Settings) -> None:
        """The inverse of `branch`."""

        def spread(rows: list[Any], tree: PyTree, leading: int) -> None:
            leaves = jax.tree.leaves(tree)
            structure: Any = jax.tree.structure(tree)
            parts = [scatter(leaf, group, leading) for leaf in leaves]
            for j, k in enumerate(group):
                rows[k.index] = structure.unflatten([part[j] for part in parts])

        spread(self.shared_basis, branch.shared_basis, 0)
        spread(self.shared_inner, branch.shared_inner, 0)
        spread(self.pending, branch.pending, 1)
        if branch.task_basis is not None:
            spread(self.task_basis, branch.task_basis, 1)
            spread(self.task_inner, branch.task_inner, 1)
        if branch.previous is not None:
            spread(self.previous, branch.previous, 1)
        if branch.recovered is not None:
            spread(self.recovered, branch.recovered, 0)

    def trees(self, params: PyTree, treedef: Any, settings: Settings) -> dict[str, PyTree]:
        """The state's fields, as trees like the unboxed parameters."""
        structure = settings.inner_structure()
        held = {i for i, basis in enumerate(self.shared_basis) if jax.tree.leaves(basis)}
        with_tasks = {i for i, basis in enumerate(self.task_basis) if jax.tree.leaves(basis)}
        return {
            "shared_basis": treedef.unflatten(self.shared_basis),
            "task_basis": treedef.unflatten(self.task_basis),
            "shared_inner": join_inner(structure, params, {i: self.shared_inner[i] for i in held}),
            "task_inner": join_inner(structure, params, {i: self.task_inner[i] for i in with_tasks}),
            "pending": treedef.unflatten(self.pending),
            "previous": treedef.unflatten(self.previous),
            "recovered": treedef.unflatten(self.recovered),
        }
