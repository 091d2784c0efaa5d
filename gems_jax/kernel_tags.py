"""What is known of a value of a program: the kernel or the activation that it is a view of."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from gems_jax.primitives import MOVEMENTS

# Where an inner jaxpr stands: the numbers of the equations that lead to it, each with the number of its branch.
Scope = tuple[tuple[int, int], ...]
# Position in a stack of layers: the step of a loop, a number, each entry of an axis of the activation, or all.
Place = Scope | int | Literal["each", "all"]


@dataclass(frozen=True)
class Kernel:
    """A value that is a parameter or a slice of it: the leaf, the leaf's axis of each axis, fixed batch axes."""

    leaf: int
    axes: tuple[int | None, ...]
    places: tuple[tuple[int, Place], ...] = ()
    is_whole: bool = True


@dataclass(frozen=True)
class Tag:
    """What is known of a value: the variable that it is a view of, and the kernel it is.

    ``view``: for each axis of the value the axes of that variable that it runs over. ``is_data``: whether it depends
    on the batch. ``made_of``: kernels that it is computed from (and the primitive through which each is no longer
    followed), as long as it is made of weights alone, or is picked from them by the batch.
    """

    scope: Scope
    var: Any
    view: tuple[tuple[int, ...], ...]
    kernel: Kernel | None = None
    is_decoder: bool = False
    is_data: bool = False
    made_of: frozenset[tuple[int, str]] = frozenset()


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
    return replace(fresh(scope, var, is_decoder, operand.is_data, operand.made_of), kernel=operand.kernel)


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


def layer_of(kernel: Kernel, loop: Scope) -> Kernel:
    axis, *axes = kernel.axes
    places = kernel.places if axis is None else (*kernel.places, (axis, loop))
    return replace(kernel, axes=tuple(axes), places=places)


def _transposed_kernel(eqn: Any, kernel: Kernel) -> Kernel | None:
    return replace(kernel, axes=tuple(kernel.axes[a] for a in eqn.params["permutation"]))


def _sliced_kernel(eqn: Any, kernel: Kernel) -> Kernel | None:
    shape = eqn.invars[0].aval.shape
    starts, limits = eqn.params["start_indices"], eqn.params["limit_indices"]
    if eqn.params["strides"] is not None and any(s != 1 for s in eqn.params["strides"]):
        return None
    axes, places, is_whole = list(kernel.axes), list(kernel.places), kernel.is_whole
    for a, (start, limit) in enumerate(zip(starts, limits, strict=True)):
        axis = kernel.axes[a]
        if limit - start == shape[a] or axis is None:
            continue
        if limit - start == 1:
            axes[a] = None
            places.append((axis, start))
        else:
            is_whole = False
    return Kernel(kernel.leaf, tuple(axes), tuple(places), is_whole)


def _reshaped_kernel(eqn: Any, kernel: Kernel) -> Kernel | None:
    """Axes of size one may come and go."""
    shape = eqn.invars[0].aval.shape
    rest = [(n, a) for n, a in zip(shape, kernel.axes, strict=True) if a is not None]
    axes: list[int | None] = []
    places = list(kernel.places)
    for n in eqn.outvars[0].aval.shape:
        while rest and rest[0][0] == 1 != n:
            places.append((rest.pop(0)[1], 0))
        if rest and rest[0][0] == n:
            axes.append(rest.pop(0)[1])
        elif n == 1:
            axes.append(None)
        else:
            return None
    if any(n != 1 for n, _ in rest):
        return None
    return replace(kernel, axes=tuple(axes), places=(*places, *((a, 0) for _, a in rest)))


KERNEL_VIEWS: dict[str, Callable[[Any, Kernel], Kernel | None]] = {
    "transpose": _transposed_kernel,
    "slice": _sliced_kernel,
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
