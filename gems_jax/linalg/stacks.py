"""Stacks of kernels: worked through member by member, spread over devices, or together where they lie."""

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, Mesh, PartitionSpec


def mesh_of_devices() -> AbstractMesh | None:
    """The mesh of several devices whose arrays the compiler lays out, if there is one here."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh if mesh.size > 1 and all(kind == AxisType.Auto for kind in mesh.axis_types) else None


def check_auto(mesh: Mesh | AbstractMesh) -> None:
    """Refuses meshes whose axes are of type ``Explicit``.

    Raises:
      ValueError: naming these axes.

    Example:
      >>> from jax.sharding import AxisType
      >>> check_auto(jax.make_mesh((1,), ("fsdp",), axis_types=(AxisType.Explicit,)))
      Traceback (most recent call last):
      ...
      ValueError: mesh axes fsdp are of type Explicit, ...
    """
    explicit = [n for n, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Explicit]
    if explicit:
        raise ValueError(
            f"mesh axes {', '.join(explicit)} are of type Explicit, where operations of a step would need the sharding "
            "of their output spelled out; make the mesh with "
            f"axis_types=(jax.sharding.AxisType.Auto,) * {len(mesh.axis_names)}"
        )


def whole_columns(x: jax.Array) -> jax.Array:
    """Thin blocks ``[..., p, r]`` with their last axis whole on each device; the other axes lie as the compiler likes.

    In products with a kernel split over two mesh axes it is the thin block that should travel.
    """
    if mesh_of_devices() is None:
        return x
    free = PartitionSpec.UNCONSTRAINED
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*(free,) * (x.ndim - 1), None))


def whole(x: jax.Array) -> jax.Array:
    """The same on every device."""
    return x if mesh_of_devices() is None else jax.lax.with_sharding_constraint(x, PartitionSpec())


def split_columns(x: jax.Array) -> jax.Array:
    """Matrices ``[..., p, q]`` with whole columns, some of them on each device."""
    mesh = mesh_of_devices()
    if mesh is None:
        return x
    # The last mesh axes first, which often split the columns already.
    spec = PartitionSpec(*(None,) * (x.ndim - 1), mesh.axis_names[::-1])
    return jax.lax.with_sharding_constraint(x, spec)


def placed_like(x: jax.Array, y: jax.Array) -> jax.Array:
    """``y``, lying where ``x`` of the same shape does.

    By an elementwise choice between the two, whose outcome the compiler cannot foresee: operands of those lie alike.
    """
    if mesh_of_devices() is None:
        return y
    never = jax.lax.optimization_barrier(jnp.zeros((), bool))
    return jnp.where(never, jax.lax.stop_gradient(x).astype(y.dtype), y)


def by_member(function: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    """``function`` of matrices for each member of a stack: one after the other on a mesh, otherwise all at once.

    On a mesh kernels are large. One at a time what lies between two products is that of one member, where that of all
    is several times the stack; and the compiler of TPUs takes an eighth of the time.

    Args:
      function: of as many arrays, each with any leading axes.
      arrays: ``[*lead, k, ., .]``; ``lead`` may be missing, ``k`` may be 1 where it is the same for all members.

    Returns:
      ``[*lead, k, ., .]``.
    """
    size = max((x.shape[-3] for x in arrays if x.ndim > 2), default=1)
    if mesh_of_devices() is None or size == 1:
        return function(*arrays)
    stacked = [x.ndim > 2 and x.shape[-3] == size for x in arrays]
    fixed = [x if is_stacked or x.ndim < 3 else x[..., 0, :, :] for x, is_stacked in zip(arrays, stacked, strict=True)]
    members = [jnp.moveaxis(x, -3, 0) for x, is_stacked in zip(arrays, stacked, strict=True) if is_stacked]

    def one(member: list[jax.Array]) -> jax.Array:
        rest = iter(member)
        return function(*[next(rest) if is_stacked else x for x, is_stacked in zip(fixed, stacked, strict=True)])

    return jnp.moveaxis(jax.lax.map(one, members), 0, -3)


def exchanged(tree: Any) -> Any:
    """Arrays ``[T, k, ...]`` as ``[k, T, ...]``, and back."""
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), tree)


_TASKS_LIE_FIRST = contextvars.ContextVar("tasks_lie_first", default=False)


@contextlib.contextmanager
def tasks_lie_first() -> Iterator[None]:
    """In here gradients lie in memory as their shape says: sums of them that a state keeps do."""
    token = _TASKS_LIE_FIRST.set(True)
    try:
        yield
    finally:
        _TASKS_LIE_FIRST.reset(token)


def as_they_lie(function: Callable[..., Any], *stacks: Any) -> Any:
    """``function`` of the tasks' stacks, in the order of axes in which gradients lie in memory.

    A scan over layers leaves the tasks' gradients as ``[k, T, ...]``, and ``jax.vmap`` exchanges the axes for the
    caller. Work on all of them exchanges them back: the compiler takes both exchanges away. Otherwise it makes copies
    of all gradients: a step takes twice the memory.

    Args:
      function: on trees of arrays with any two leading axes.
      stacks: trees of arrays ``[T, k, ...]``.

    Returns:
      Tree of arrays ``[T, k, ...]``.
    """
    return function(*stacks) if _TASKS_LIE_FIRST.get() else exchanged(function(*exchanged(stacks)))


def into_conditional(tree: Any) -> tuple[Any, Callable[[Any], Any]]:
    """Gradients as they lie in memory, see `as_they_lie`, and what makes them again of these inside of a conditional.

    Its operands are made as their shape says, whatever is done with them inside: the two leading axes ``[T, k]`` are
    one, in the order of memory. On a mesh nothing is changed.
    """
    if _TASKS_LIE_FIRST.get() or mesh_of_devices() is not None:
        return tree, lambda same: same

    def put(x: jax.Array) -> jax.Array:
        return exchanged(x).reshape(-1, *x.shape[2:]) if x.ndim > 3 else x

    def take(x: jax.Array, like: jax.Array) -> jax.Array:
        return exchanged(x.reshape(like.shape[1], like.shape[0], *like.shape[2:])) if like.ndim > 3 else x

    return jax.tree.map(put, tree), lambda operands: jax.tree.map(take, operands, tree)


def map_stack(function: Callable[..., Any], depth: int, varying: Any, shared: Any) -> Any:
    """``function(varying, shared)``, which takes stacks; on CPU it gets their members one by one.

    A batched LAPACK call on CPU waits for the thread pool that it may be running on itself: as many of them at once
    as the pool has threads, from two threads of a program for instance, wait for ever (seen with jaxlib 0.10.2), and
    on a pool of two threads a single one gains nothing. Single calls do not wait.

    Args:
      function: on trees of arrays with any leading axes.
      depth: leading axes of ``varying``, 1 or 2.
      varying: tree of arrays ``[k, ...]`` or ``[T, k, ...]``.
      shared: tree of arrays ``[k, ...]``.
    """
    mesh = mesh_of_devices()
    if mesh is not None:
        return _spread(function, depth, varying, shared, mesh)
    if jax.default_backend() != "cpu":
        return function(varying, shared)
    if depth == 1:
        return jax.lax.map(lambda members: function(*members), (varying, shared))
    if _TASKS_LIE_FIRST.get():
        return jax.lax.map(lambda members: map_stack(function, 1, members, shared), varying)

    def of_tasks(members: tuple[Any, Any]) -> Any:
        return jax.lax.map(lambda task: function(task, members[1]), members[0])

    return exchanged(jax.lax.map(of_tasks, (exchanged(varying), shared)))


def _spread(function: Callable[..., Any], depth: int, varying: Any, shared: Any, mesh: AbstractMesh) -> Any:
    """`map_stack` with the members of the stack spread over all devices of a mesh, whole.

    Nothing is sent inside the function, and no device repeats what another does: the compiler by itself gathers the
    stack and has every device decompose all of it.
    """
    lead = jax.tree.leaves(varying)[0].shape[:depth]
    size = math.prod(lead)
    # Members of zeros, which give no basis, make the stack divisible.
    missing = -size % mesh.size
    each = PartitionSpec(mesh.axis_names)

    def flat(x: jax.Array) -> jax.Array:
        x = x.reshape(size, *x.shape[depth:])
        return jnp.pad(x, ((0, missing), *((0, 0),) * (x.ndim - 1)))

    shared = jax.tree.map(lambda x: jnp.broadcast_to(x, (*lead, *x.shape[1:])), shared)
    of_device = jax.shard_map(
        lambda members: map_stack(function, 1, *members),
        mesh=mesh,
        in_specs=(each,),
        out_specs=each,
        check_vma=False,
    )
    results = of_device(jax.tree.map(flat, (varying, shared)))
    return jax.tree.map(lambda x: x[:size].reshape(*lead, *x.shape[1:]), results)
