"""Which axes of a program's values run along the positions of an attention mask.

An abstract run of a jaxpr: every axis of a value is a mixed-radix number whose digits are parts of the mask's axes, or
of none. Elementwise operations, transpositions, reshapes, slices, products and loops say exactly how these change;
after anything else an axis that ran along a mask is lost, which is said, not guessed.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jax.extend import core

from gems_jax.null_space.tracing.axis_moves import MOVES
from gems_jax.null_space.tracing.kernel_tags import Scope
from gems_jax.null_space.tracing.kernel_uses import inner_jaxpr, scan_counts
from gems_jax.null_space.tracing.primitives import CALLS, CUMULATIVE, ELEMENTWISE, REDUCTIONS
from gems_jax.null_space.tracing.traced_value import (
    LOST,
    NONE,
    Axis,
    Digit,
    TracedValue,
    axis_of,
    is_none,
    join,
    join_axis,
    plain,
    with_axes,
)


class TokenAxes(NamedTuple):
    """Values by scope and variable, and the digits that the steps of each scan are."""

    values: dict[tuple[Scope, Any], TracedValue]
    loops: dict[Scope, Axis]


def trace_token_axes(jaxpr: Any, args: Sequence[TracedValue]) -> TokenAxes:
    """The axes of all values of a program.

    Args:
      jaxpr: the program.
      args: of its inputs, see `plain` and `entry` of `traced_value`.

    Returns:
      `TokenAxes`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gems_jax.null_space.tracing.traced_value import TOKENS, entry
      >>> jaxpr = jax.make_jaxpr(lambda x: x.swapaxes(0, 1).reshape(12, 2))(jnp.ones((3, 4, 2))).jaxpr
      >>> axes = trace_token_axes(jaxpr, [entry((3, 4, 2), (3, 4), TOKENS)])
      >>> [digit.axis for digit in axes.values[(), jaxpr.outvars[0]].axes[0]]
      [1, 0]
    """
    record = TokenAxes({}, {})
    _walk(jaxpr, (), args, record)
    return record


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
        return [with_axes(join(same).axes, values)]
    if name in CUMULATIVE:
        return values
    if name in REDUCTIONS:
        gone = eqn.params["axes"]
        return [with_axes([axis for a, axis in enumerate(values[0].axes) if a not in gone], values)]
    if name in MOVES:
        return MOVES[name](eqn, values)
    tracked = any(not is_none(axis) for value in values for axis in value.axes)
    return [with_axes([axis_of([Digit(LOST if tracked else NONE, n)]) for n in shape], values) for shape in shapes]


# Loops and branches


def _steady(initial: list[TracedValue], step: Callable[[list[TracedValue]], list[TracedValue]]) -> list[TracedValue]:
    """A carry that a step does not change any more; each round can only lose, so it ends."""
    while (after := [join([a, b]) for a, b in zip(initial, step(initial), strict=True)]) != initial:
        initial = after
    return initial


def _scan(eqn: Any, values: list[TracedValue], inner: Scope, record: TokenAxes) -> list[TracedValue]:
    body, (num_consts, num_carry) = eqn.params["jaxpr"].jaxpr, scan_counts(eqn)
    consts, carry, xs = values[:num_consts], values[num_consts:][:num_carry], values[num_consts + num_carry :]
    loop = axis_of([Digit(NONE, eqn.params["length"])])
    for x in xs:
        loop = join_axis(loop, x.axes[0])
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
    return [join(results) for results in zip(*branches, strict=True)]


_LOOPS: dict[str, Callable[..., list[TracedValue]]] = {"scan": _scan, "while": _while, "cond": _cond}
