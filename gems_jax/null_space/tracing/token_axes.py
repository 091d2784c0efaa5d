"""Which axes of a program's values run along the positions of an attention mask.

An abstract run of a jaxpr: every axis of a value is a mixed-radix number whose digits are parts of the mask's axes, or
of none. Elementwise operations, transpositions, reshapes, slices, products and loops say exactly how these change;
after anything else an axis that ran along a mask is lost, which is said, not guessed.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jax.extend import core

from gems_jax.null_space.tracing.kernel_tags import Scope
from gems_jax.null_space.tracing.kernel_uses import inner_jaxpr, scan_counts
from gems_jax.null_space.tracing.primitives import CALLS, CUMULATIVE, ELEMENTWISE, REDUCTIONS

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


class TokenAxes(NamedTuple):
    """Values by scope and variable, and the digits that the steps of each scan are."""

    values: dict[tuple[Scope, Any], TracedValue]
    loops: dict[Scope, Axis]


def plain(shape: Sequence[int]) -> TracedValue:
    """A value along no mask."""
    return TracedValue(tuple(_axis([Digit(NONE, n)]) for n in shape))


def whole(axis: int, size: int) -> Axis:
    """An axis that is a mask's."""
    return _axis([Digit(axis, size, span=size)])


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


def trace_token_axes(jaxpr: Any, args: Sequence[TracedValue]) -> TokenAxes:
    """The axes of all values of a program.

    Args:
      jaxpr: the program.
      args: of its inputs, see `plain` and `entry`.

    Returns:
      `TokenAxes`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> jaxpr = jax.make_jaxpr(lambda x: x.swapaxes(0, 1).reshape(12, 2))(jnp.ones((3, 4, 2))).jaxpr
      >>> axes = trace_token_axes(jaxpr, [entry((3, 4, 2), (3, 4), TOKENS)])
      >>> [digit.axis for digit in axes.values[(), jaxpr.outvars[0]].axes[0]]
      [1, 0]
    """
    record = TokenAxes({}, {})
    _walk(jaxpr, (), args, record)
    return record


def _axis(digits: Sequence[Digit]) -> Axis:
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


def _is_none(axis: Axis) -> bool:
    return all(digit.axis == NONE for digit in axis)


def _lost(axis: Axis, size: int) -> Axis:
    return _axis([Digit(NONE if _is_none(axis) else LOST, size)])


def _size(axis: Axis) -> int:
    return math.prod(digit.size for digit in axis)


def _join_axis(a: Axis, b: Axis) -> Axis:
    if a == b or _is_none(b):
        return a or b  # an axis of size one is broadcast
    return b if _is_none(a) else _axis([Digit(LOST, _size(a))])


def _join(values: Sequence[TracedValue]) -> TracedValue:
    """The value whose entries depend on the same entries of all values."""
    axes = values[0].axes
    for value in values[1:]:
        axes = tuple(map(_join_axis, axes, value.axes))
    return _with(axes, values)


def _with(axes: Sequence[Axis], values: Sequence[TracedValue]) -> TracedValue:
    fixed = frozenset[Fixed]().union(*(value.fixed for value in values))
    return TracedValue(tuple(axes), fixed, any(value.is_data for value in values))


def _walk(jaxpr: Any, scope: Scope, args: Sequence[TracedValue], record: TokenAxes) -> list[TracedValue]:
    def read(atom: Any) -> TracedValue:
        if isinstance(atom, core.Literal):
            return plain(getattr(atom.aval, "shape", ()))
        return record.values[scope, atom]

    def write(variables: Sequence[Any], values: Sequence[TracedValue]) -> None:
        record.values.update(((scope, var), value) for var, value in zip(variables, values, strict=True))

    write(jaxpr.constvars, [plain(var.aval.shape) for var in jaxpr.constvars])
    write(jaxpr.invars, args)
    for number, eqn in enumerate(jaxpr.eqns):
        write(eqn.outvars, _equation(eqn, [read(atom) for atom in eqn.invars], (*scope, (number, 0)), record))
    return [read(atom) for atom in jaxpr.outvars]


def _equation(eqn: Any, values: list[TracedValue], inner: Scope, record: TokenAxes) -> list[TracedValue]:
    name = eqn.primitive.name
    if name in CALLS:
        return _walk(inner_jaxpr(eqn)[0], inner, values, record)
    if name in _LOOPS:
        return _LOOPS[name](eqn, values, inner, record)
    if not any(value.is_data for value in values):
        return [plain(getattr(var.aval, "shape", ())) for var in eqn.outvars]
    shapes = [var.aval.shape for var in eqn.outvars]
    if name in ELEMENTWISE and len(shapes) == len(values):
        return values
    if name in ELEMENTWISE:
        same = [value for value in values if len(value.axes) == len(shapes[0])]
        return [_with(_join(same).axes, values)]
    if name in CUMULATIVE:
        return values
    if name in REDUCTIONS:
        gone = eqn.params["axes"]
        return [_with([axis for a, axis in enumerate(values[0].axes) if a not in gone], values)]
    if name in _MOVES:
        return _MOVES[name](eqn, values)
    tracked = any(not _is_none(axis) for value in values for axis in value.axes)
    return [_with([_axis([Digit(LOST if tracked else NONE, n)]) for n in shape], values) for shape in shapes]


# Loops and branches


def _steady(initial: list[TracedValue], step: Callable[[list[TracedValue]], list[TracedValue]]) -> list[TracedValue]:
    """A carry that a step does not change any more; each round can only lose, so it ends."""
    while (after := [_join([a, b]) for a, b in zip(initial, step(initial), strict=True)]) != initial:
        initial = after
    return initial


def _scan(eqn: Any, values: list[TracedValue], inner: Scope, record: TokenAxes) -> list[TracedValue]:
    body, (num_consts, num_carry) = eqn.params["jaxpr"].jaxpr, scan_counts(eqn)
    consts, carry, xs = values[:num_consts], values[num_consts:][:num_carry], values[num_consts + num_carry :]
    loop = _axis([Digit(NONE, eqn.params["length"])])
    for x in xs:
        loop = _join_axis(loop, x.axes[0])
    record.loops[inner] = loop
    slices = [x._replace(axes=x.axes[1:]) for x in xs]
    results: list[TracedValue] = []

    def step(carry: list[TracedValue]) -> list[TracedValue]:
        results[:] = _walk(body, inner, [*consts, *carry, *slices], record)
        return results[:num_carry]

    carry = _steady(carry, step)
    (along_none,) = plain([eqn.params["length"]]).axes
    stacked = [y._replace(axes=(loop if y.is_data else along_none, *y.axes)) for y in results[num_carry:]]
    return [*carry, *stacked]


def _while(eqn: Any, values: list[TracedValue], inner: Scope, record: TokenAxes) -> list[TracedValue]:
    num_cond, num_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    consts, carry = values[num_cond:][:num_body], values[num_cond + num_body :]
    return _steady(carry, lambda carry: _walk(eqn.params["body_jaxpr"].jaxpr, inner, [*consts, *carry], record))


def _cond(eqn: Any, values: list[TracedValue], inner: Scope, record: TokenAxes) -> list[TracedValue]:
    branches = [
        _walk(branch.jaxpr, (*inner[:-1], (inner[-1][0], b)), values[1:], record)
        for b, branch in enumerate(eqn.params["branches"])
    ]
    return [_join(results) for results in zip(*branches, strict=True)]


_LOOPS: dict[str, Callable[..., list[TracedValue]]] = {"scan": _scan, "while": _while, "cond": _cond}


# Entries that move


def _reshape(eqn: Any, values: list[TracedValue]) -> list[TracedValue]:
    (x, *_), shape = values, eqn.outvars[0].aval.shape
    if eqn.primitive.name == "reshape" and eqn.params["dimensions"] is not None:
        return [_with([_axis([Digit(LOST, n)]) for n in shape], values)]
    digits, axes = [digit for axis in x.axes for digit in axis], []
    for n in shape:
        taken: list[Digit] = []
        while n > 1 and digits:
            digit = digits.pop(0)
            if n % digit.size and digit.size % n == 0:  # its outer part
                digit, inner = _halves(digit, digit.size // n)
                digits.insert(0, inner)
            elif n % digit.size:
                return [_with([_axis([Digit(LOST, n)]) for n in shape], values)]
            taken.append(digit)
            n //= digit.size
        axes.append(_axis(taken))
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
    return [_with(axes, values)]


def _part(x: TracedValue, a: int, start: int | None, size: int, stride: int = 1) -> TracedValue:
    """Some entries of an axis; ``start`` is ``None`` where the program decides which."""
    axis = x.axes[a]
    if _is_none(axis):
        return x._replace(axes=(*x.axes[:a], _axis([Digit(NONE, size)]), *x.axes[a + 1 :]))
    fixed, digit = x.fixed, axis[0]
    if len(axis) > 1 or digit.axis == LOST or start is None:
        new = _axis([Digit(LOST, size)])
        if size == 1:
            fixed = fixed | {Fixed(d.axis, d.unit, d.span, None) for d in axis if d.axis != NONE}
    else:
        offset = digit.offset + start * digit.stride
        new = _axis([digit._replace(size=size, stride=digit.stride * stride, offset=offset)])
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
    return [_with(x.axes, [x, *values[1:]])]


def _split(eqn: Any, values: list[TracedValue]) -> list[TracedValue]:
    starts, parts = 0, []
    for n in eqn.params["sizes"]:
        parts.append(_part(values[0], eqn.params["axis"], starts, n))
        starts += n
    return parts


def _concatenate(eqn: Any, values: list[TracedValue]) -> list[TracedValue]:
    a, size = eqn.params["dimension"], eqn.outvars[0].aval.shape[eqn.params["dimension"]]
    along = [value.axes[a] for value in values]
    tracked = [part for part in along if not _is_none(part)]
    axis = _axis([Digit(LOST if tracked else NONE, size)])
    if len(tracked) == 1:
        axis = _shifted(tracked[0], size)
    elif all(len(part) == 1 and part[0].axis >= 0 for part in along):
        first = at = along[0][0]
        for (digit,) in along[1:]:
            if digit != at._replace(size=digit.size, offset=at.offset + at.size * at.stride):
                break
            at = digit
        else:
            axis = _axis([first._replace(size=size)])
    rest = [value._replace(axes=(*value.axes[:a], (), *value.axes[a + 1 :])) for value in values]
    joined = _join(rest)
    return [joined._replace(axes=(*joined.axes[:a], axis, *joined.axes[a + 1 :]))]


def _shifted(axis: Axis, size: int) -> Axis:
    """An axis that was filled up to this size: shifted by one, as decoders' inputs are, it still is the mask's."""
    digit = axis[0] if len(axis) == 1 else Digit(LOST, size)
    is_shifted = digit.axis >= 0 and digit.unit == digit.stride == 1 and digit.span == size == digit.size + 1
    return whole(digit.axis, size) if is_shifted else _lost(axis, size)


def _pad(eqn: Any, values: list[TracedValue]) -> list[TracedValue]:
    (x, _), shape = values, eqn.outvars[0].aval.shape
    axes = [
        axis if tuple(padding) == (0, 0, 0) else _shifted(axis, n)
        for axis, n, padding in zip(x.axes, shape, eqn.params["padding_config"], strict=True)
    ]
    return [_with(axes, values)]


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
        value = _join(values) if eqn.primitive.name == "sort" else values[0]
        a = eqn.params.get("dimension", eqn.params.get("axis", -1)) % len(value.axes)
        axes = list(value.axes)
        axes[a] = _lost(axes[a], var.aval.shape[a])
        results.append(value._replace(axes=tuple(axes)))
    return results


def _dot_general(eqn: Any, values: list[TracedValue]) -> list[TracedValue]:
    contracting, batching = eqn.params["dimension_numbers"]
    a, b = values
    axes = [_join_axis(a.axes[i], b.axes[j]) for i, j in zip(*batching, strict=True)]
    for s, x in enumerate(values):
        axes += [axis for i, axis in enumerate(x.axes) if i not in (*contracting[s], *batching[s])]
    return [_with(axes, values)]


def _gather(eqn: Any, values: list[TracedValue]) -> list[TracedValue]:
    """Entries of a value at indices: what is taken whole stays, an axis that is indexed is gone."""
    x, indices = values
    numbers, sizes, shape = eqn.params["dimension_numbers"], eqn.params["slice_sizes"], eqn.outvars[0].aval.shape
    together = dict(zip(numbers.start_indices_batching_dims, numbers.operand_batching_dims, strict=True))
    batch = [
        _join_axis(axis, x.axes[together[i]]) if i in together else axis for i, axis in enumerate(indices.axes[:-1])
    ]
    kept, fixed = [], set[Fixed]()
    for a, (axis, n, whole) in enumerate(zip(x.axes, sizes, eqn.invars[0].aval.shape, strict=True)):
        if a in numbers.operand_batching_dims:
            continue
        if n != whole:
            fixed |= {Fixed(d.axis, d.unit, d.span, None) for d in axis if d.axis != NONE}
            axis = _lost(axis, n)
        if a not in numbers.collapsed_slice_dims:
            kept.append(axis)
    offsets, others = iter(kept), iter(batch)
    axes = [next(offsets) if a in numbers.offset_dims else next(others) for a in range(len(shape))]
    gathered = _with(axes, values)
    return [gathered._replace(fixed=gathered.fixed | fixed)]


_MOVES: dict[str, Callable[[Any, list[TracedValue]], list[TracedValue]]] = {
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
