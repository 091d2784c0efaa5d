"""Reports of a transform: diagnostics of its last step, the size of its state."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import optax

from gems_jax.boxes import is_like, unboxed
from gems_jax.first_few import first_few
from gems_jax.transform.init_plans import InitPlan, init_shapes
from gems_jax.transform.plan import KernelPlan
from gems_jax.transform.state import entries, gems_states
from gems_jax.types import PyTree

_LISTED = 8  # leaves that a line of the table names


def diagnostics(state: PyTree) -> dict[str, jax.Array]:
    """Diagnostics of the last step, from any optimiser state that holds a `GemsState`.

    Args:
      state: of `gems`, or of a chain, partition, wrapper around it.

    Returns:
      The fields of `gems_jax.transform.state.Diagnostics` by name: gates, weights, grad_norms, cosines, captured,
      update_norm, refreshed, failed, waiting, absent, skipped.

    Raises:
      ValueError: no `GemsState` inside, or several.

    Example:
      >>> import jax.numpy as jnp
      >>> from gems_jax import gems
      >>> tx = gems(1e-3, num_tasks=2, rank=1)
      >>> diagnostics(tx.init({"kernel": jnp.ones((4, 4))}))["gates"].tolist()
      [0.5, 0.5]
    """
    states = gems_states(state)
    if len(states) != 1:
        raise ValueError(f"expected an optimiser state with one GemsState inside, found {len(states)}")
    return dict(states[0].diagnostics._asdict())


@dataclass(frozen=True)
class StateRow:
    """One parameter leaf (or null-space factor) in the table of `state_bytes`.

    Attributes:
      path: of the leaf.
      shape: its shape.
      treatment: ``"subspaces"``, ``"frozen"``, ``"fallback"``, ``"constrained"`` (the fallback's update, projected),
        ``"null space"`` or ``"other"``.
      side: of the bases, ``""`` without.
      ranks: shared and task rank, with what was asked for where capped.
      bytes: of optimiser state.
    """

    path: str
    shape: tuple[int, ...]
    treatment: str
    side: str
    ranks: str
    bytes: int


@dataclass(frozen=True)
class StateBytes:
    """The table of `state_bytes`; ``str()`` prints it.

    Attributes:
      rows: one a leaf, then one a null-space factor.
      total: bytes of the whole state.
      adamw: bytes of AdamW's state, two float32 numbers a parameter.
      unnamed: fallback leaves of three or more axes, which only a rule could give a matrix role.
      frozen: kernels whose null space is empty: they do not move.
      left_out: why leaves have no subspaces, or are not in the null space that others are in, by path.
      free: leaves that train outside of the null space that others are in.
    """

    rows: tuple[StateRow, ...]
    total: int
    adamw: int
    unnamed: tuple[str, ...]
    frozen: tuple[str, ...]
    left_out: dict[str, str]
    free: tuple[str, ...]

    def __str__(self) -> str:
        width = max([len(r.path) for r in self.rows] + [4])
        header = f"{'shape':18s} {'treatment':11s} {'side':4s} {'rank + task rank':34s} {'bytes':>13s}"
        lines = [f"{'leaf':{width}s}  {header}"]
        for r in self.rows:
            shape = "x".join(map(str, r.shape))
            lines.append(f"{r.path:{width}s}  {shape:18s} {r.treatment:11s} {r.side:4s} {r.ranks:34s} {r.bytes:13,d}")
        lines.append(f"total {self.total:,d} bytes, {self.total / max(self.adamw, 1):.2f} x AdamW's {self.adamw:,d}")
        if self.total > self.adamw:
            lines.append(
                "This is more than AdamW needs: use a smaller rank (an eighth of the smaller side, rank=0.125), "
                "a smaller task_rank, or an inner transform with fewer statistics."
            )
        if self.unnamed:
            lines.append(f"No matrix role (name it with matrix_dims to project it): {_listed(self.unnamed)}")
        for why in dict.fromkeys(self.left_out.values()):
            lines.append(f"Left out, {why}: {_listed([p for p, text in self.left_out.items() if text == why])}")
        if self.free:
            text = "Outside the null space; training them moves outputs on general inputs that use them"
            lines.append(f"{text}: {_listed(self.free)}")
        return "\n".join(lines)


def state_bytes(tx: optax.GradientTransformation, params: PyTree) -> StateBytes:
    """The size of a model's optimiser state, leaf by leaf, before anything is allocated.

    A projected kernel with Adam holds ``(r + T r_t)(p + 2 q)`` numbers, ``p`` the side its bases keep.

    Args:
      tx: `gems`, also inside a chain, a partition or a wrapper.
      params: parameters, or their shapes (``jax.eval_shape``).

    Returns:
      A `StateBytes`; ``print`` it.

    Example:
      >>> import jax.numpy as jnp
      >>> from gems_jax import gems
      >>> table = state_bytes(gems(1e-3, num_tasks=2, rank=2), {"kernel": jnp.ones((16, 16))})
      >>> table.rows[0].ranks, table.rows[0].bytes
      ('2 + 2 x 1', 783)
    """
    state, made = init_shapes(tx, params)
    rows: list[StateRow] = []
    for entry in made:
        rows += _rows(entry)
    total = _bytes(state)
    rest = total - sum(row.bytes for row in rows)
    if rest:
        rows.append(StateRow("(counters, gates, other transforms)", (), "other", "", "", rest))
    size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    plans = [entry.plan for entry in made]
    return StateBytes(
        rows=tuple(rows),
        total=total,
        adamw=8 * size,
        unnamed=tuple(path for plan in plans for path in plan.unnamed),
        frozen=tuple(k.path for plan in plans for k in plan.kernels if k.rank == 0),
        left_out={path: why for plan in plans for path, why in plan.left_out.items()},
        free=tuple(path for entry in made for path in _free(entry)),
    )


def _free(entry: InitPlan) -> list[str]:
    """The leaves that a transform moves outside of its null space, if it keeps updates in one."""
    plan, settings = entry.plan, entry.settings
    if settings.null_space is None or settings.constraint != "update":
        return []
    return [path for path in plan.paths if path not in settings.null_space.inputs]


def _listed(paths: Sequence[str]) -> str:
    return first_few(paths, _LISTED)


def _bytes(tree: PyTree) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _ranks(kernel: KernelPlan, num_tasks: int) -> str:
    ranks, wanted = (kernel.rank, kernel.task_rank), kernel.wanted
    text = f"{ranks[0]} + {num_tasks} x {ranks[1]}" if ranks[1] or wanted[1] else f"{ranks[0]}"
    return text if ranks == wanted else f"{text} (capped from {wanted[0]}, {wanted[1]})"


def _like_params(tree: PyTree, treedef: Any) -> list[PyTree]:
    """The subtrees that mirror the parameters: inner and fallback states hold them among other things."""

    matches = lambda x: is_like(x, treedef)  # noqa: E731
    return [x for x in jax.tree.leaves(unboxed(tree), is_leaf=matches) if matches(x)]


def _rows(entry: InitPlan) -> list[StateRow]:
    plan, state, treedef = entry.plan, entry.state, entry.treedef
    kernels = {k.index: k for k in plan.kernels}
    held = [state.shared_basis, state.task_basis, state.pending, state.previous, state.recovered]
    for tree in (state.shared_inner, state.task_inner, state.fallback):
        held += _like_params(tree, treedef)
    sizes = [0] * len(plan.paths)
    for tree in held:
        for i, part in enumerate(entries(tree, treedef)):
            sizes[i] += _bytes(part)
    rows = []
    for i, path in enumerate(plan.paths):
        k = kernels.get(i)
        if k is None:
            treatment = "constrained" if i in plan.constrained else "fallback"
            rows.append(StateRow(path, entry.shapes[i], treatment, "", "", sizes[i]))
        else:
            treatment = "subspaces" if k.rank else "frozen"
            rows.append(StateRow(path, k.spec.shape, treatment, k.side, _ranks(k, entry.settings.num_tasks), sizes[i]))
    rows += [StateRow(f"input of {n}", f.shape, "null space", "", "", _bytes(f)) for n, f in state.null_space.items()]
    return rows
