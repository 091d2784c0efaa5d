"""How the optimiser state lies on a mesh: beside the parameters it belongs to."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from gems_jax.boxes import map_with_path
from gems_jax.leaf_path import leaf_path, named_leaves
from gems_jax.linalg.matrix_dims import MatrixDims, MatrixSpec, resolve
from gems_jax.linalg.stacks import check_auto
from gems_jax.null_space.constraint import ConstrainToNullSpaceState
from gems_jax.null_space.space import OUTPUTS
from gems_jax.transform.init_plans import InitPlan, init_shapes
from gems_jax.transform.state import GemsState
from gems_jax.types import PyTree

Axes = tuple[str, ...]  # mesh axes over which one array axis is split


class ParamLayout(NamedTuple):
    """A parameter's shape and, for each of its axes, the mesh axes that split it."""

    shape: tuple[int, ...]
    axes: tuple[Axes, ...]


class Matrix(NamedTuple):
    """Mesh axes of a kernel read as ``[*batch, in, out]``; flattened axes are split over all of theirs."""

    batch: tuple[Axes, ...]
    sides: dict[str, Axes]


def state_sharding(tx: Any, params: PyTree, task_axis: str | None = None) -> PyTree:
    """Where every array of an optimiser state belongs, from where the parameters are; nothing is run.

    Bases ``[p, r]`` and null-space factors ``[d, c]`` are split as the kernel's axis they span, low-rank moments
    ``[r, q]`` as its other one, and their thin axis (``r`` or ``c``) over the kernel's other mesh axes, those that
    divide it; stacks as the kernel's batch axes, statistics of other leaves as their parameter; counters, gates and
    diagnostics are replicated. So all devices that share a kernel share its state.

    Args:
      tx: `gems_jax.gems` or any optax transform, also inside a chain, a partition or a wrapper.
      params: tree of arrays on their devices, or of ``jax.ShapeDtypeStruct`` with ``sharding``; every leaf has a
        ``NamedSharding`` of one mesh.
      task_axis: mesh axis over which per-task bases, moments and accumulated gradients are split (its size
        divides the number of tasks); ``None``: every device holds those of all tasks.

    Returns:
      A tree like ``tx.init(params)`` of ``NamedSharding``, for ``jax.jit(tx.init, out_shardings=...)``, for
      ``jax.device_put``, for restoring a checkpoint, and for the ``out_shardings`` of the step: left to itself the
      compiler may lay a state out anew, and then the second step compiles again.

    Raises:
      ValueError: a leaf without a ``NamedSharding``, leaves on several meshes, a mesh with axes of type
        ``Explicit``, an unknown ``task_axis``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jax.sharding import AxisType, NamedSharding, PartitionSpec
      >>> from gems_jax import gems
      >>> mesh = jax.make_mesh((1, 1), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)
      >>> layout = NamedSharding(mesh, PartitionSpec("fsdp", "tensor"))
      >>> params = {"kernel": jax.ShapeDtypeStruct((8, 16), jnp.float32, sharding=layout)}
      >>> sharding = state_sharding(gems(1e-3, num_tasks=2, rank=2), params)[0]
      >>> tuple(sharding.shared_basis["kernel"].spec), tuple(sharding.shared_inner.mu["kernel"].spec)
      ((None, 'fsdp', None), (None, None, 'tensor'))
    """
    mesh, layouts = _param_layouts(params)
    if task_axis is not None and task_axis not in mesh.axis_names:
        raise ValueError(f"task_axis is {task_axis!r}; the mesh has the axes {', '.join(mesh.axis_names)}")
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    state, plans = init_shapes(tx, shapes)
    find = _Find(mesh, layouts, () if task_axis is None else (task_axis,))

    def of(path: tuple[Any, ...], x: Any) -> PyTree:
        if isinstance(x, GemsState):
            return _of_gems(x, _plan_of(x, plans), find)
        if isinstance(x, ConstrainToNullSpaceState):
            factors: Any = {name: find.factor(name, f) for name, f in x.factors.items()}
            return ConstrainToNullSpaceState(factors)
        return find.like_parameter(path, x)

    return map_with_path(of, state, is_leaf=lambda x: isinstance(x, _KNOWN))


_KNOWN = (GemsState, ConstrainToNullSpaceState)
_OTHER = {"in": "out", "out": "in"}


def _param_layouts(params: PyTree) -> tuple[Mesh | AbstractMesh, dict[str, ParamLayout]]:
    """The mesh of the parameters, and where each lies, by path."""
    layouts: dict[str, ParamLayout] = {}
    mesh: Mesh | AbstractMesh | None = None
    for name, leaf in named_leaves(params):
        sharding = getattr(leaf, "sharding", None)
        if not isinstance(sharding, NamedSharding):
            raise ValueError(
                f"parameter {name!r} has no NamedSharding but {sharding}; place it with jax.device_put(params, "
                "NamedSharding(mesh, spec)), or describe it by jax.ShapeDtypeStruct(shape, dtype, sharding=...)"
            )
        mesh = sharding.mesh if mesh is None else mesh
        if sharding.mesh != mesh:
            raise ValueError(f"parameter {name!r} is on the mesh {sharding.mesh}, those before it on {mesh}; use one")
        spec = (*sharding.spec, *(None,) * (len(leaf.shape) - len(sharding.spec)))
        layouts[name] = ParamLayout(tuple(leaf.shape), tuple(_names(entry) for entry in spec))
    if mesh is None:
        raise ValueError("there are no parameters, so there is no mesh; give the tree that tx.init gets")
    check_auto(mesh)
    return mesh, layouts


def _names(entry: Any) -> Axes:
    if entry is None or entry is PartitionSpec.UNCONSTRAINED:
        return ()
    return (entry,) if isinstance(entry, str) else tuple(entry)


class _Find(NamedTuple):
    """Looks shardings up by the path of a state's leaf, which ends in the path of its parameter."""

    mesh: Mesh | AbstractMesh
    layouts: dict[str, ParamLayout]
    task: Axes

    def sharding(self, axes: Sequence[Axes]) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec(*[a[0] if len(a) == 1 else (a or None) for a in axes]))

    def replicated(self, tree: PyTree = None) -> PyTree:
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        return everywhere if tree is None else jax.tree.map(lambda _: everywhere, tree)

    def parameter(self, path: tuple[Any, ...]) -> str | None:
        """The parameter whose path ends this one; the longest, should there be several."""
        ends = (leaf_path(path[i:]) for i in range(len(path) + 1))
        return next((end for end in ends if end in self.layouts), None)

    def like_parameter(self, path: tuple[Any, ...], x: Any) -> NamedSharding:
        """As the parameter of the same path and shape, also with the task axis before it; otherwise replicated."""
        name = self.parameter(path)
        if name is not None:
            shape, axes = self.layouts[name]
            if x.shape == shape:
                return self.sharding(axes)
            if x.shape[1:] == shape and x.shape:
                return self.sharding((self.task, *axes))
        return self.replicated()

    def dividing(self, axes: Axes, size: int) -> Axes:
        """Those of the mesh axes, from the first on, that split an axis of this size into more than one equal part."""
        split: Axes = ()
        for name in axes:
            parts = math.prod(self.mesh.shape[n] for n in (*split, name))
            split = (*split, name) if self.mesh.shape[name] > 1 and size > 0 and size % parts == 0 else split
        return split

    def matrix(self, name: str, spec: MatrixSpec) -> Matrix:
        batch_ndim, axes = len(spec.batch_shape), self.layouts[name].axes
        batch, matrix = spec.order[:batch_ndim], spec.order[batch_ndim:]
        inputs = 0
        while math.prod(spec.shape[a] for a in matrix[:inputs]) < spec.matrix_shape[0]:
            inputs += 1
        flat = lambda which: tuple(n for a in which for n in axes[a])  # noqa: E731
        # The state of a kernel that is not stacked has a leading axis of 1.
        return Matrix(
            tuple(axes[a] for a in batch) or ((),), {"in": flat(matrix[:inputs]), "out": flat(matrix[inputs:])}
        )

    def factor(self, name: str, x: Any, matrix: Matrix | None = None, side: str = "in") -> NamedSharding:
        """Sharding of a null-space factor ``[*batch, d, c]``, by a kernel that reads the input."""
        if matrix is None:
            kernel = name.removesuffix(OUTPUTS)
            shape = self.layouts[kernel].shape if kernel in self.layouts else ()
            if len(shape) < 2:
                return self.replicated()
            matrix = self.matrix(kernel, resolve(MatrixDims(), shape))
            side = "in" if kernel == name and shape[-2] == x.shape[-2] else "out"
        batch = matrix.batch if len(x.shape) == 2 + len(matrix.batch) else ()
        return self.sharding((*batch, matrix.sides[side], self.dividing(matrix.sides[_OTHER[side]], x.shape[-1])))


def _plan_of(state: GemsState, plans: Sequence[InitPlan]) -> InitPlan:
    """The plan that a state was made by: states of different parameters differ in their structure."""
    structure: Any = jax.tree.structure(state)
    matching = [entry for entry in plans if jax.tree.structure(entry.state) == structure]
    if not matching:
        raise ValueError("the state holds a GemsState that tx.init did not make; pass the transform itself")
    return matching[0]


def _of_gems(state: GemsState, entry: InitPlan, find: _Find) -> GemsState:
    kernels = {k.path: k for k in entry.plan.kernels}
    matrices = {path: find.matrix(path, k.spec) for path, k in kernels.items()}

    def basis(path: tuple[Any, ...], x: Any, lead: tuple[Axes, ...] = ()) -> NamedSharding:
        name = find.parameter(path)
        assert name is not None
        matrix, side = matrices[name], kernels[name].side
        thin = find.dividing(matrix.sides[_OTHER[side]], x.shape[-1])
        return find.sharding((*lead, *matrix.batch, matrix.sides[side], thin))

    def low_rank(path: tuple[Any, ...], x: Any, lead: tuple[Axes, ...] = (), task: bool = False) -> NamedSharding:
        """Statistics of ``[r, q]``, whole or factored: whatever else an inner transform keeps is replicated."""
        name = find.parameter(path)
        assert name is not None
        k, matrix = kernels[name], matrices[name]
        rank = k.task_rank if task else k.rank
        other, thin = matrix.sides[_OTHER[k.side]], find.dividing(matrix.sides[k.side], rank)
        leading = (*lead, *matrix.batch)
        tail = tuple(x.shape[len(leading) :])
        ends: dict[tuple[int, ...], tuple[Axes, ...]] = {(rank, k.other): (thin, other), (k.other,): (other,)}
        if tail == (rank,) == (k.other,):
            return find.sharding((*leading, ()))
        return find.sharding((*leading, *ends.get(tail, ((),) * len(tail))))

    def each(function: Any, tree: PyTree, **options: Any) -> PyTree:
        return map_with_path(lambda path, x: function(path, x, **options), tree)

    lead = (find.task,)
    side = "in" if entry.settings.null_space is None else entry.settings.null_space.side
    readers = {source: find.matrix(entry.plan.paths[i], spec) for i, (spec, source) in entry.plan.constrained.items()}
    readers |= {k.source: matrices[k.path] for k in reversed(entry.plan.kernels) if k.source is not None}
    factors: Any = {
        name: find.factor(name, x, readers[name], side) if name in readers else find.replicated()
        for name, x in state.null_space.items()
    }
    return GemsState(
        count=find.replicated(),
        shared_basis=each(basis, state.shared_basis),
        task_basis=each(basis, state.task_basis, lead=lead),
        shared_inner=each(low_rank, state.shared_inner),
        task_inner=each(low_rank, state.task_inner, lead=lead, task=True),
        pending=find.replicated(state.pending),
        previous=each(low_rank, state.previous, lead=lead, task=True),
        recovered=find.replicated(state.recovered),
        fallback=each(find.like_parameter, state.fallback),
        gate=find.replicated(state.gate),
        null_space=factors,
        diagnostics=find.replicated(state.diagnostics),
    )
