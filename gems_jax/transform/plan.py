"""The plan of how each parameter is treated: static facts from paths and shapes alone."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from gems_jax.leaf_path import named_leaves
from gems_jax.linalg.matrix_dims import MatrixSpec, matrix_specs
from gems_jax.null_space.constraint import check_factor, check_paths, constrained_spec
from gems_jax.transform.left_out import reasons, unprotected
from gems_jax.transform.settings import Settings
from gems_jax.types import PyTree
from gems_jax.whole_number import is_whole


@dataclass(frozen=True)
class KernelPlan:
    """The plan of one projected kernel (or stack of them).

    Attributes:
      index: position of the leaf in the tree.
      path: its path.
      spec: its matrix role.
      side: side of its bases.
      rank, task_rank: columns of the shared and the task bases; 0 and 0: frozen, its null space is empty.
      wanted: the ranks before capping.
      source: name of its null-space factor, or ``None``.
      free: ``[batch]`` dimension of the null space of each matrix, or ``None``.
      inside: whether its bases lie in the null space (otherwise a factor acts on the other axis of the
        low-rank update, or on the gradient).
    """

    index: int
    path: str
    spec: MatrixSpec
    side: Literal["in", "out"]
    rank: int
    task_rank: int
    wanted: tuple[int, int]
    source: str | None
    free: tuple[int, ...] | None
    inside: bool

    @property
    def kept(self) -> int:
        """``p``: size of the side that bases keep."""
        return self.spec.matrix_shape[0 if self.side == "in" else 1]

    @property
    def other(self) -> int:
        """``q``: size of the other side."""
        return self.spec.matrix_shape[1 if self.side == "in" else 0]

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Leading axes of its state arrays; a single kernel is a stack of one."""
        return self.spec.batch_shape or (1,)

    def columns(self, rank: int, used: int = 0) -> np.ndarray | None:
        """``[batch, rank]`` bool: the columns each matrix's null space has room for, ``None`` if for all."""
        if not self.inside or self.free is None or min(self.free) - used >= rank:
            return None
        return np.arange(rank) < np.maximum(np.asarray(self.free)[:, None] - used, 0)


Group = tuple[KernelPlan, ...]  # kernels of one shape and treatment: one batched computation


@dataclass(frozen=True)
class Plan:
    """The treatment of the leaves of one tree.

    Attributes:
      paths: of all leaves, in order.
      kernels: projected kernels.
      groups: the same, see `Group`.
      fallback: indices of the leaves that take the fallback.
      constrained: spec and factor of fallback leaves that the null space constrains, by index.
      unnamed: fallback leaves of three or more axes, which only a rule could give a matrix role.
      left_out: why leaves have no subspaces, or are not in the null space that others are in.
      unprotected: those of them that are multiplied with activations, and have neither.
    """

    paths: tuple[str, ...]
    kernels: tuple[KernelPlan, ...]
    groups: tuple[Group, ...]
    fallback: tuple[int, ...]
    constrained: dict[int, tuple[MatrixSpec, str]]
    unnamed: tuple[str, ...]
    left_out: dict[str, str]
    unprotected: tuple[str, ...]

    def turns(self, every: int | None) -> dict[int, tuple[int, ...]]:
        """When each matrix is refreshed where refreshes are staggered: the step of an interval, by kernel.

        A stack's members take turns from its first step on, as many at a time as it takes to be through within the
        interval; kernels alone of their shape take turns with each other. Each has one turn in an interval.

        Args:
          every: length of the interval, ``None``: all at once.
        """
        turns: dict[int, tuple[int, ...]] = {}
        alone = 0
        for group in self.groups:
            sizes = [math.prod(k.batch_shape) for k in group]
            chunk = 1 if every is None else -(-sum(sizes) // every)
            member = alone if sum(sizes) == 1 else 0
            alone += sum(sizes) == 1
            for kernel, size in zip(group, sizes, strict=True):
                turns[kernel.index] = tuple((member + i) // chunk % (every or 1) for i in range(size))
                member += size
        return turns


def _resolve_rank(rank: int | float, smaller: int) -> int:
    return int(rank) if is_whole(rank) else max(1, round(float(rank) * smaller))


def _kernel(index: int, path: str, spec: MatrixSpec, settings: Settings) -> KernelPlan:
    null_space = settings.null_space
    constrained = null_space is not None and path in null_space.inputs
    m, n = spec.matrix_shape
    side = settings.side
    if side == "auto":
        side = "in" if m <= n else "out"
        on_update = constrained and settings.constraint == "update"
        if on_update and null_space is not None and null_space.side != "both":  # which the settings refuse
            side = null_space.side
    smaller = min(m, n) if spec.batch else 0  # a stack of no layers has nothing to keep
    rank = _resolve_rank(settings.rank, smaller)
    task_rank = max(1, rank // 2) if settings.task_rank is None else settings.task_rank
    task_rank = 0 if task_rank == 0 else _resolve_rank(task_rank, smaller)
    wanted, cap, source, free, inside = (rank, task_rank), smaller, None, None, False
    if constrained and null_space is not None:
        check_factor(path, spec, null_space)
        factor = null_space.factor(path)
        source = null_space.inputs[path]
        if settings.constraint == "update":
            free = tuple(int(x) for x in np.broadcast_to(factor.dim - factor.kept, spec.batch_shape or (1,)).ravel())
            cap = min(cap, max(free, default=0))
            inside = side == null_space.side
    rank = min(rank, cap)
    task_rank = min(task_rank, cap - rank if settings.complementary else cap)
    return KernelPlan(index, path, spec, side, rank, task_rank, wanted, source, free, inside)


def make_plan(params: PyTree, settings: Settings) -> Plan:
    """Decides the treatment of every leaf; equal trees of shapes have equal plans.

    Args:
      params: tree of arrays or anything with shapes and dtypes.
      settings: of the transform.

    Returns:
      A `Plan`.

    Raises:
      ValueError: a rule that makes no leaf a kernel, dimension numbers or factors that do not fit.
    """
    leaves = named_leaves(params)
    paths = tuple(path for path, _ in leaves)
    for path, leaf in leaves:
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            raise TypeError(
                f"parameter {path!r} is no array but {leaf!r:.60}: make numbers arrays (jnp.asarray), and leave what "
                "is not trained out of the tree (equinox.filter(model, equinox.is_inexact_array) does)"
            )
    specs = matrix_specs(params, settings.matrix_dims, settings.null_space.roles if settings.null_space else None)
    if leaves and settings.matrix_dims is not None and not any(specs):
        raise ValueError(
            f"matrix_dims names none of the {len(leaves)} parameters ({', '.join(paths[:3])}, ...); "
            "it must return MatrixDims for the kernels that get subspaces"
        )
    if settings.null_space is not None:
        check_paths(params, settings.null_space)
    kernels = tuple(_kernel(i, paths[i], spec, settings) for i, spec in enumerate(specs) if spec is not None)
    fallback = tuple(i for i, spec in enumerate(specs) if spec is None)
    constrained = {}
    if settings.null_space is not None and settings.constraint == "update":
        for i in fallback:
            if paths[i] in settings.null_space.inputs:
                spec = constrained_spec(paths[i], leaves[i][1], settings.null_space)
                constrained[i] = (spec, settings.null_space.inputs[paths[i]])
    unnamed = tuple(paths[i] for i in fallback if len(leaves[i][1].shape) > 2)
    groups: dict[Any, list[KernelPlan]] = {}
    for kernel in kernels:
        if kernel.rank == 0:
            continue
        # Stacks are batched as they are; single kernels of one shape are stacked inside the update, so that
        # the program does not grow with depth.
        key: Any = kernel.index
        if not kernel.spec.batch_shape:
            form = None
            if kernel.source is not None and settings.null_space is not None:
                factor = settings.null_space.factors[kernel.source]
                form = (factor.complement, factor.basis.shape)
            dtype = str(leaves[kernel.index][1].dtype)
            key = (kernel.spec, kernel.side, kernel.rank, kernel.task_rank, kernel.inside, form, dtype)
        groups.setdefault(key, []).append(kernel)
    others = {paths[i]: leaves[i][1].shape for i in fallback if i not in constrained}
    projected = [paths[i] for i in constrained]
    left_out = reasons({k.path for k in kernels}, others, settings.null_space, settings.matrix_dims, projected)
    left_out |= {k.path: "its null space is empty, so that it does not move" for k in kernels if k.rank == 0 and k.free}
    missed = unprotected(others, settings.null_space, settings.matrix_dims)
    return Plan(paths, kernels, tuple(map(tuple, groups.values())), fallback, constrained, unnamed, left_out, missed)
