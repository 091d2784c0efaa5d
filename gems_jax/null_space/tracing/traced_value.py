"""Values of a program as numbers whose digits run along the axes of an attention mask."""

import math
from collections.abc import Sequence
from typing import NamedTuple

# Axes of the masks: rows, positions, the decoder's positions; then: along none, and no longer known.
ROWS, TOKENS, DECODER_TOKENS, NONE, LOST = 0, 1, 2, -1, -2


class Digit(NamedTuple):
    """Entry ``i`` of ``size`` adds ``offset + i * stride`` to the position along a mask's axis.

    ``unit`` and ``span`` say which digit of the position it is, also where some of its entries were taken: the digits
    of a whole position have units 1, ``span`` of the first, and so on.
    """

    axis: int
    size: int
    stride: int = 1
    offset: int = 0
    unit: int = 1
    span: int = 1


# Outermost digit first; an axis of size one has none.
Axis = tuple[Digit, ...]


class Fixed(NamedTuple):
    """A digit that is gone because one entry was taken; ``at`` is ``None`` where the program decides which."""

    axis: int
    unit: int
    span: int
    at: int | None


class TracedValue(NamedTuple):
    """A traced value: its axes, the entries it was taken at, whether it depends on the batch."""

    axes: tuple[Axis, ...]
    fixed: frozenset[Fixed] = frozenset()
    is_data: bool = False


def plain(shape: Sequence[int]) -> TracedValue:
    """A value along no mask."""
    return TracedValue(tuple(axis_of([Digit(NONE, n)]) for n in shape))


def whole(axis: int, size: int) -> Axis:
    """An axis that is a mask's."""
    return axis_of([Digit(axis, size, span=size)])


def entry(shape: Sequence[int], mask: Sequence[int] | None, positions: int) -> TracedValue:
    """An entry of a batch, whose first axes are those of its mask where they have its sizes."""
    axes = list(plain(shape).axes)
    if mask is None or len(mask) != 2:
        return TracedValue(tuple(axes), is_data=True)
    if tuple(shape[:2]) == tuple(mask):
        axes[:2] = whole(ROWS, mask[0]), whole(positions, mask[1])
    elif shape and shape[0] == mask[0]:
        axes[0] = whole(ROWS, mask[0])
    return TracedValue(tuple(axes), is_data=True)


def axis_of(digits: Sequence[Digit]) -> Axis:
    """Digits in one form for one meaning: neighbours that are one number are one digit."""
    merged: list[Digit] = []
    for digit in digits:
        if digit.size == 1:
            continue
        last = merged[-1] if merged else None
        if last and last.axis == digit.axis < 0:
            merged[-1] = Digit(digit.axis, last.size * digit.size)
        elif last and _are_one(last, digit):
            size, offset = last.size * digit.size, last.offset + digit.offset
            merged[-1] = Digit(digit.axis, size, digit.stride, offset, digit.unit, last.span * digit.span)
        else:
            merged.append(digit)
    return tuple(merged)


def _are_one(outer: Digit, inner: Digit) -> bool:
    is_next = outer.axis == inner.axis and outer.unit == inner.unit * inner.span
    return is_next and outer.stride == inner.stride * inner.size


def is_none(axis: Axis) -> bool:
    """Whether an axis runs along no mask."""
    return all(digit.axis == NONE for digit in axis)


def lost(axis: Axis, size: int) -> Axis:
    """An axis of this size that was changed in a way that is not followed."""
    return axis_of([Digit(NONE if is_none(axis) else LOST, size)])


def _size(axis: Axis) -> int:
    return math.prod(digit.size for digit in axis)


def join_axis(a: Axis, b: Axis) -> Axis:
    """The axis whose entries depend on the same entries of both."""
    if a == b or is_none(b):
        return a or b  # an axis of size one is broadcast
    return b if is_none(a) else axis_of([Digit(LOST, _size(a))])


def join(values: Sequence[TracedValue]) -> TracedValue:
    """The value whose entries depend on the same entries of all values."""
    axes = values[0].axes
    for value in values[1:]:
        axes = tuple(map(join_axis, axes, value.axes))
    return with_axes(axes, values)


def with_axes(axes: Sequence[Axis], values: Sequence[TracedValue]) -> TracedValue:
    """A value of these axes that depends on the values."""
    fixed = frozenset[Fixed]().union(*(value.fixed for value in values))
    return TracedValue(tuple(axes), fixed, any(value.is_data for value in values))
