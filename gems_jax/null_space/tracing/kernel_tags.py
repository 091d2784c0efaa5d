"""Tags on the values of a program: the kernel or the activation that each is a view of."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from gems_jax.null_space.tracing.primitives import MOVEMENTS

# Where an inner jaxpr stands: the numbers of the equations that lead to it, each with the number of its branch.
Scope = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Step:
    """The position in a stack that the step of a loop over a part of it has."""

    loop: Scope
    start: int


# Position in a stack of layers: the step of a loop, a number, each entry of an axis of the activation, or all.
Slot = Scope | Step | int | Literal["each", "all"]


@dataclass(frozen=True)
class KernelView:
    """A value that is a parameter or a part of it.

    ``axes``: the leaf's axis of each axis, ``None`` for one that the leaf does not have. ``slots``: of axes that are
    gone, the entry that was taken. ``parts``: of axes of which several entries were taken, the first.
    """

    leaf: int
    axes: tuple[int | None, ...]
    slots: tuple[tuple[int, Slot], ...] = ()
    parts: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Tag:
    """A value's origin: the variable that it is a view of, and the kernel it is.

    ``view``: for each axis of the value the axes of that variable that it runs over. ``is_data``: whether it depends
    on the batch. ``made_of``: kernels that it is computed from (and the primitive through which each is no longer
    followed), as long as it is made of weights alone, or is picked from them by the batch. ``is_one_hot``: whether it
    compares numbers with a list, as the positions of ones are found.
    """

    scope: Scope
    var: Any
    view: tuple[tuple[int, ...], ...]
    kernel: KernelView | None = None
    is_decoder: bool = False
    is_data: bool = False
    made_of: frozenset[tuple[int, str]] = frozenset()
    is_one_hot: bool = False


def fresh(
    scope: Scope,
    var: Any,
    is_decoder: bool = False,
    is_data: bool = False,
    made_of: frozenset[tuple[int, str]] = frozenset(),
) -> Tag:
    """A value of its own."""
    ndim = len(getattr(var.aval, "shape", ()))
    return Tag(scope, var, tuple((a,) for a in range(ndim)), None, is_decoder, is_data, made_of)


def enter(operand: Tag, scope: Scope, var: Any, is_decoder: bool) -> Tag:
    """A value inside of a branch or loop, where it is a value of its own."""
    inside = fresh(scope, var, is_decoder, operand.is_data, operand.made_of)
    return replace(inside, kernel=operand.kernel, is_one_hot=operand.is_one_hot)


def made_of(tags: Sequence[Tag], primitive: str) -> frozenset[tuple[int, str]]:
    """The kernels that a result of these operands is computed from, see `Tag`."""

    def of(tag: Tag) -> frozenset[tuple[int, str]]:
        return tag.made_of if tag.kernel is None else frozenset({(tag.kernel.leaf, primitive)})

    if primitive in ("gather", "dynamic_slice"):
        tags = tags[:1]
    elif primitive == "select_n":
        tags = tags[1:]
    elif any(tag.is_data for tag in tags) and primitive not in MOVEMENTS and len(tags) > 1:
        return frozenset()
    if any(tag.is_data and not of(tag) for tag in tags):
        return frozenset()
    return frozenset[tuple[int, str]]().union(*map(of, tags))


def layer_of(kernel: KernelView, loop: Scope) -> KernelView:
    axis, *axes = kernel.axes
    if axis is None:
        return replace(kernel, axes=tuple(axes))
    starts = dict(kernel.parts)
    slot: Slot = Step(loop, starts.pop(axis)) if axis in starts else loop
    return KernelView(kernel.leaf, tuple(axes), (*kernel.slots, (axis, slot)), tuple(starts.items()))


def _part(kernel: KernelView, a: int, start: int, size: int) -> KernelView:
    """Some entries of an axis."""
    axis = kernel.axes[a]
    if axis is None:
        return kernel
    starts = dict(kernel.parts)
    start += starts.pop(axis, 0)
    if size > 1:
        return replace(kernel, parts=(*starts.items(), (axis, start)))
    axes = (*kernel.axes[:a], None, *kernel.axes[a + 1 :])
    return KernelView(kernel.leaf, axes, (*kernel.slots, (axis, start)), tuple(starts.items()))


def split_kernel(eqn: Any, kernel: KernelView) -> list[KernelView]:
    """The parts of a kernel that is split along an axis."""
    start, parts = 0, []
    for size in eqn.params["sizes"]:
        parts.append(_part(kernel, eqn.params["axis"], start, size))
        start += size
    return parts


def scaled_kernel(eqn: Any, operands: Sequence[Tag]) -> KernelView | None:
    """A kernel times a number, or divided by one, that does not depend on the batch: its inputs are the same."""
    if eqn.primitive.name not in ("mul", "div", "neg"):
        return None
    shapes = [getattr(atom.aval, "shape", ()) for atom in eqn.invars]
    for i, other in ((0, 1), (1, 0)):
        if eqn.primitive.name == "mul" and operands[i].kernel is None:
            continue
        if len(operands) == 1 or (shapes[other] == () and not operands[other].is_data):
            return operands[i].kernel
        if eqn.primitive.name != "mul":
            return None
    return None


def _transposed_kernel(eqn: Any, kernel: KernelView) -> KernelView | None:
    return replace(kernel, axes=tuple(kernel.axes[a] for a in eqn.params["permutation"]))


def _sliced_kernel(eqn: Any, kernel: KernelView) -> KernelView | None:
    shape = eqn.invars[0].aval.shape
    starts, limits = eqn.params["start_indices"], eqn.params["limit_indices"]
    if eqn.params["strides"] is not None and any(s != 1 for s in eqn.params["strides"]):
        return None
    for a, (start, limit) in enumerate(zip(starts, limits, strict=True)):
        if limit - start != shape[a]:
            kernel = _part(kernel, a, start, limit - start)
    return kernel


def _broadcast_kernel(eqn: Any, kernel: KernelView) -> KernelView | None:
    """Copies along axes of their own."""
    old, new = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    axes: list[int | None] = [None for _ in new]
    slots = list(kernel.slots)
    for axis, n, a in zip(kernel.axes, old, eqn.params["broadcast_dimensions"], strict=True):
        if n == new[a]:
            axes[a] = axis
        elif axis is not None:
            slots.append((axis, 0))
    return replace(kernel, axes=tuple(axes), slots=tuple(slots))


def _reshaped_kernel(eqn: Any, kernel: KernelView) -> KernelView | None:
    """Axes of size one may come and go."""
    shape = eqn.invars[0].aval.shape
    rest = [(n, a) for n, a in zip(shape, kernel.axes, strict=True) if a is not None]
    axes: list[int | None] = []
    slots = list(kernel.slots)
    for n in eqn.outvars[0].aval.shape:
        while rest and rest[0][0] == 1 != n:
            slots.append((rest.pop(0)[1], 0))
        if rest and rest[0][0] == n:
            axes.append(rest.pop(0)[1])
        elif n == 1:
            axes.append(None)
        else:
            return None
    if any(n != 1 for n, _ in rest):
        return None
    return replace(kernel, axes=tuple(axes), slots=(*slots, *((a, 0) for _, a in rest)))


KERNEL_VIEWS: dict[str, Callable[[Any, KernelView], KernelView | None]] = {
    "transpose": _transposed_kernel,
    "slice": _sliced_kernel,
    "broadcast_in_dim": _broadcast_kernel,
    "squeeze": _reshaped_kernel,
    "reshape": _reshaped_kernel,
}


def activation_view(eqn: Any, tag: Tag) -> tuple[tuple[int, ...], ...] | None:
    """The view after a transposition or after neighbouring axes are merged; ``None``: a value of its own."""
    if eqn.primitive.name == "transpose":
        return tuple(tag.view[a] for a in eqn.params["permutation"])
    if eqn.primitive.name != "reshape" or eqn.params["dimensions"] is not None:
        return None
    old, merged, at = eqn.invars[0].aval.shape, [], 0
    for n in eqn.outvars[0].aval.shape:
        group: tuple[int, ...] = ()
        size = 1
        while at < len(old) and (size < n or not group):
            group, size, at = group + tag.view[at], size * old[at], at + 1
        if size != n:
            return None
        merged.append(group)
    return tuple(merged) if at == len(old) else None
