"""Operations that move the entries of a value, as they change the digits of its axes."""

from collections.abc import Callable
from typing import Any

from jax.extend import core

from gems_jax.null_space.tracing.traced_value import (
    LOST,
    NONE,
    Axis,
    Digit,
    Fixed,
    TracedValue,
    axis_of,
    is_none,
    join,
    join_axis,
    lost,
    plain,
    whole,
    with_axes,
)


def _reshape(eqn: Any, values: list[TracedValue]) -> list[TracedValue]:
    (x, *_), shape = values, eqn.outvars[0].aval.shape
    if eqn.primitive.name == "reshape" and eqn.params["dimensions"] is not None:
        return [with_axes([axis_of([Digit(LOST, n)]) for n in shape], values)]
    digits, axes = [digit for axis in x.axes for digit in axis], []
    for n in shape:
        taken: list[Digit] = []
        while n > 1 and digits:
            digit = digits.pop(0)
            if n % digit.size and digit.size % n == 0:  # its outer part
                digit, inner = _halves(digit, digit.size // n)
                digits.insert(0, inner)
            elif n % digit.size:
                return [with_axes([axis_of([Digit(LOST, n)]) for n in shape], values)]
            taken.append(digit)
            n //= digit.size
        axes.append(axis_of(taken))
    return [x._replace(axes=tuple(axes))]


def _halves(digit: Digit, size: int) -> tuple[Digit, Digit]:
    """A digit as two, the inner one of this size."""
    if digit.axis >= 0 and (digit.span % size or digit.span == size):
        digit = Digit(LOST, digit.size)
    inner = digit._replace(size=size, offset=0, span=size)
    span = digit.span // size if digit.axis >= 0 else 1
    stride, unit = digit.stride * size, digit.unit * size
    return digit._replace(size=digit.size // size, stride=stride, unit=unit, span=span), inner


def _transpose(eqn: Any, values: list[TracedValue]) -> list[TracedValue]:
    return [values[0]._replace(axes=tuple(values[0].axes[a] for a in eqn.params["permutation"]))]


def _broadcast(eqn: Any, values: list[TracedValue]) -> list[TracedValue]:
    shape, axes = eqn.outvars[0].aval.shape, list(plain(eqn.outvars[0].aval.shape).axes)
    for axis, n, a in zip(values[0].axes, eqn.invars[0].aval.shape, eqn.params["broadcast_dimensions"], strict=True):
        if n == shape[a]:
            axes[a] = axis
    return [with_axes(axes, values)]


def _part(x: TracedValue, a: int, start: int | None, size: int, stride: int = 1) -> TracedValue:
    """Some entries of an axis; ``start`` is ``None`` where the program decides which."""
    axis = x.axes[a]
    if is_none(axis):
        return x._replace(axes=(*x.axes[:a], axis_of([Digit(NONE, size)]), *x.axes[a + 1 :]))
    fixed, digit = x.fixed, axis[0]
    if len(axis) > 1 or digit.axis == LOST or start is None:
        new = axis_of([Digit(LOST, size)])
        if size == 1:
            fixed = fixed | {Fixed(d.axis, d.unit, d.span, None) for d in axis if d.axis != NONE}
    else:
        offset = digit.offset + start * digit.stride
        new = axis_of([digit._replace(size=size, stride=digit.stride * stride, offset=offset)])
        if size == 1:
            fixed = fixed | {Fixed(digit.axis, digit.unit, digit.span, offset)}
    return x._replace(axes=(*x.axes[:a], new, *x.axes[a + 1 :]), fixed=fixed)


def _slice(eqn: Any, values: list[TracedValue]) -> list[TracedValue]:
    x, shape = values[0], eqn.invars[0].aval.shape
    strides = eqn.params["strides"] or (1,) * len(shape)
    for a, (start, n, stride) in enumerate(
        zip(eqn.params["start_indices"], eqn.outvars[0].aval.shape, strides, strict=True)
    ):
        if n != shape[a]:
            x = _part(x, a, start, n, stride)
    return [x]


def _dynamic_slice(eqn: Any, values: list[TracedValue]) -> list[TracedValue]:
    x, shape = values[0], eqn.invars[0].aval.shape
    for a, (n, atom) in enumerate(zip(eqn.params["slice_sizes"], eqn.invars[1:], strict=True)):
        if n != shape[a]:
            start = int(atom.val) if isinstance(atom, core.Literal) else None
            x = _part(x, a, None if start is None else min(max(start, 0), shape[a] - n), n)
    return [with_axes(x.axes, [x, *values[1:]])]


def _split(eqn: Any, values: list[TracedValue]) -> list[TracedValue]:
    starts, parts = 0, []
    for n in eqn.params["sizes"]:
        parts.append(_part(values[0], eqn.params["axis"], starts, n))
        starts += n
    return parts


def _concatenate(eqn: Any, values: list[TracedValue]) -> list[TracedValue]:
    a, size = eqn.params["dimension"], eqn.outvars[0].aval.shape[eqn.params["dimension"]]
    along = [value.axes[a] for value in values]
    tracked = [part for part in along if not is_none(part)]
    axis = axis_of([Digit(LOST if tracked else NONE, size)])
    if len(tracked) == 1:
        axis = _shifted(tracked[0], size)
    elif all(len(part) == 1 and part[0].axis >= 0 for part in along):
        first = at = along[0][0]
        for (digit,) in along[1:]:
            if digit != at._replace(size=digit.size, offset=at.offset + at.size * at.stride):
                break
            at = digit
        else:
            axis = axis_of([first._replace(size=size)])
    rest = [value._replace(axes=(*value.axes[:a], (), *value.axes[a + 1 :])) for value in values]
    joined = join(rest)
    return [joined._replace(axes=(*joined.axes[:a], axis, *joined.axes[a + 1 :]))]


def _shifted(axis: Axis, size: int) -> Axis:
    """An axis that was filled up to this size: shifted by one, as decoders' inputs are, it still is the mask's."""
    digit = axis[0] if len(axis) == 1 else Digit(LOST, size)
    is_shifted = digit.axis >= 0 and digit.unit == digit.stride == 1 and digit.span == size == digit.size + 1
    return whole(digit.axis, size) if is_shifted else lost(axis, size)


def _pad(eqn: Any, values: list[TracedValue]) -> list[TracedValue]:
    (x, _), shape = values, eqn.outvars[0].aval.shape
    axes = [
        axis if tuple(padding) == (0, 0, 0) else _shifted(axis, n)
        for axis, n, padding in zip(x.axes, shape, eqn.params["padding_config"], strict=True)
    ]
    return [with_axes(axes, values)]


def _rev(eqn: Any, values: list[TracedValue]) -> list[TracedValue]:
    axes = list(values[0].axes)
    for a in eqn.params["dimensions"]:
        # Each digit of a mixed-radix number is reversed on its own.
        axes[a] = tuple(map(_reversed, axes[a]))
    return [values[0]._replace(axes=tuple(axes))]


def _reversed(digit: Digit) -> Digit:
    if digit.axis < 0:
        return digit
    return digit._replace(offset=digit.offset + (digit.size - 1) * digit.stride, stride=-digit.stride)


def _ordered(eqn: Any, values: list[TracedValue]) -> list[TracedValue]:
    """Sorting and choosing along one axis, whose positions are not known after it."""
    results = []
    for var in eqn.outvars:
        value = join(values) if eqn.primitive.name == "sort" else values[0]
        a = eqn.params.get("dimension", eqn.params.get("axis", -1)) % len(value.axes)
        axes = list(value.axes)
        axes[a] = lost(axes[a], var.aval.shape[a])
        results.append(value._replace(axes=tuple(axes)))
    return results


def _dot_general(eqn: Any, values: list[TracedValue]) -> list[TracedValue]:
    contracting, batching = eqn.params["dimension_numbers"]
    a, b = values
    axes = [join_axis(a.axes[i], b.axes[j]) for i, j in zip(*batching, strict=True)]
    for s, x in enumerate(values):
        axes += [axis for i, axis in enumerate(x.axes) if i not in (*contracting[s], *batching[s])]
    return [with_axes(axes, values)]


def _gather(eqn: Any, values: list[TracedValue]) -> list[TracedValue]:
    """Entries of a value at indices: what is taken whole stays, an axis that is indexed is gone."""
    x, indices = values
    numbers, sizes, shape = eqn.params["dimension_numbers"], eqn.params["slice_sizes"], eqn.outvars[0].aval.shape
    together = dict(zip(numbers.start_indices_batching_dims, numbers.operand_batching_dims, strict=True))
    batch = [
        join_axis(axis, x.axes[together[i]]) if i in together else axis for i, axis in enumerate(indices.axes[:-1])
    ]
    kept, fixed = [], set[Fixed]()
    for a, (axis, n, all_of_it) in enumerate(zip(x.axes, sizes, eqn.invars[0].aval.shape, strict=True)):
        if a in numbers.operand_batching_dims:
            continue
        if n != all_of_it:
            fixed |= {Fixed(d.axis, d.unit, d.span, None) for d in axis if d.axis != NONE}
            axis = lost(axis, n)
        if a not in numbers.collapsed_slice_dims:
            kept.append(axis)
    offsets, others = iter(kept), iter(batch)
    axes = [next(offsets) if a in numbers.offset_dims else next(others) for a in range(len(shape))]
    gathered = with_axes(axes, values)
    return [gathered._replace(fixed=gathered.fixed | fixed)]


MOVES: dict[str, Callable[[Any, list[TracedValue]], list[TracedValue]]] = {
    "reshape": _reshape,
    "squeeze": _reshape,
    "transpose": _transpose,
    "broadcast_in_dim": _broadcast,
    "slice": _slice,
    "dynamic_slice": _dynamic_slice,
    "split": _split,
    "concatenate": _concatenate,
    "pad": _pad,
    "rev": _rev,
    "sort": _ordered,
    "top_k": _ordered,
    "dot_general": _dot_general,
    "gather": _gather,
}
