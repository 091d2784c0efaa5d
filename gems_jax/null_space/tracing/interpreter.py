"""The program of a forward pass run step by step, summing second moments of some of its variables on the way."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from gems_jax.null_space.second_moment import SecondMoment, add_lower
from gems_jax.null_space.tracing.kernel_products import Use
from gems_jax.null_space.tracing.kernel_tags import Scope, Step
from gems_jax.null_space.tracing.kernel_uses import bind_again, inner_jaxpr, scan_counts
from gems_jax.null_space.tracing.position_masks import Masks, Unknown, position_mask
from gems_jax.null_space.tracing.primitives import CALLS
from gems_jax.null_space.tracing.token_axes import TokenAxes

# Layers of a stack whose moments are taken: the first, and the one behind the last.
Layers = tuple[int, int]


@dataclass(frozen=True)
class Run:
    """The state that a run of the program carries along.

    Attributes:
      actions: the variables to add, by scope.
      layers: of inputs by name, those whose moments are taken.
      masks: of the batch.
      token_axes: which axes of values run along the masks.
      whole_rows: whether matrices are added whole.
      unit_norm: whether each vector is divided by its norm first.
      steps: numbers of the loops' steps.
      moments: the sums, which are replaced.
    """

    actions: Mapping[Scope, Mapping[Any, Sequence[tuple[str, Use]]]]
    layers: Mapping[str, Layers]
    masks: Masks
    token_axes: TokenAxes
    whole_rows: bool
    unit_norm: bool
    steps: Mapping[Scope, Any]
    moments: dict[str, SecondMoment]

    def inside(self, scope: Scope) -> dict[str, SecondMoment]:
        """Sums that something within a scope adds to."""
        names = {
            name
            for where, by_var in self.actions.items()
            if where[: len(scope)] == scope
            for entries in by_var.values()
            for name, _ in entries
        }
        return {name: moment for name, moment in self.moments.items() if name in names}


def evaluate(jaxpr: Any, consts: Any, args: Sequence[Any], scope: Scope, run: Run) -> list[Any]:
    """Runs a jaxpr that stands at ``scope``; ``run.moments`` holds the new sums then."""
    values: dict[Any, Any] = {}
    actions = run.actions.get(scope, {})

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    def write(variables: Sequence[Any], results: Sequence[Any]) -> None:
        for var, value in zip(variables, results, strict=True):
            values[var] = value
            for name, use in actions.get(var, ()):
                if name in run.moments:
                    _add(name, use, value, run)

    write(jaxpr.constvars, consts)
    write(jaxpr.invars, args)
    for number, eqn in enumerate(jaxpr.eqns):
        write(eqn.outvars, _equation(eqn, [read(atom) for atom in eqn.invars], (*scope, (number, 0)), run))
    return [read(atom) for atom in jaxpr.outvars]


def _equation(eqn: Any, values: list[Any], inner: Scope, run: Run) -> Sequence[Any]:
    name = eqn.primitive.name
    if name in CALLS:
        jaxpr, consts = inner_jaxpr(eqn)
        return evaluate(jaxpr, consts, values, inner, run)
    if name == "scan" and run.inside(inner):
        return _scan(eqn, values, inner, run)
    if name == "while" and run.inside(inner):
        return _while(eqn, values, inner, run)
    if name == "cond":
        branches = [(*inner[:-1], (inner[-1][0], b)) for b in range(len(eqn.params["branches"]))]
        if any(run.inside(branch) for branch in branches):
            return _cond(eqn, values, branches, run)
    return bind_again(eqn, values)


def _add(name: str, use: Use, value: jax.Array, run: Run) -> None:
    """Adds the second moment of a value to its sum."""
    free = [a for a in range(value.ndim) if a not in (*use.axes, *use.lead)]
    vectors = jnp.transpose(value, (*use.lead, *free, *use.axes))
    lead = vectors.shape[: len(use.lead)]
    mask = _mask(use, run)
    vectors = vectors.reshape(*lead, -1, math.prod(value.shape[a] for a in use.axes))
    stack = run.moments[name].total.shape[:-2]
    index: list[Any] = []
    for axis in range(len(stack)):
        slot = use.slots[axis]
        if isinstance(slot, str):
            index.append(None)
            continue
        position: Any = slot
        if isinstance(slot, Step):
            position = slot.start + run.steps[slot.loop]
        elif isinstance(slot, tuple):
            position = run.steps[slot]
        first, end = run.layers.get(name, (0, stack[0])) if axis == 0 else (0, stack[axis])
        if isinstance(position, int) and not first <= position < end:
            return
        index.append(position - first)
    if stack:
        # An axis of size one where all of a stack has the same vectors.
        dims = iter(lead)
        shape = [1 if use.slots[a] == "all" else next(dims) for a, i in enumerate(index) if i is None]
        vectors = vectors.reshape(*shape, *vectors.shape[-2:])
    run.moments[name] = add_lower(run.moments[name], index, vectors, mask, run.whole_rows, run.unit_norm)


def _mask(use: Use, run: Run) -> jax.Array | None:
    """The mask of a use's positions; where that is not known, as their sizes suggest, which calibration warns of."""
    try:
        return position_mask(use, run.token_axes, run.masks, run.steps)
    except Unknown:
        mask = run.masks.decoder if use.is_decoder else run.masks.tokens
        assert mask is not None
        if not mask_fits(use.positions, mask.shape):
            return None
        size = math.prod(use.positions)
        return jnp.broadcast_to(mask.reshape(-1, 1), (mask.size, size // mask.size)).reshape(-1)


def mask_fits(positions: tuple[int, ...], mask: tuple[int, ...]) -> bool:
    """Whether positions begin with those of a mask, as they are or as one axis."""
    return positions[: len(mask)] == mask or positions[:1] == (math.prod(mask),)


def _scan(eqn: Any, values: list[Any], inner: Scope, run: Run) -> list[Any]:
    """A scan that carries the sums along, in parts with the same inputs to add in all steps."""
    body, (num_consts, num_carry) = eqn.params["jaxpr"], scan_counts(eqn)
    consts, carry, xs = values[:num_consts], values[num_consts:][:num_carry], values[num_consts + num_carry :]
    parts = list(_parts(eqn.params["length"], inner, run))
    outputs: dict[int, Any] = {}
    for first, end, names in parts[::-1] if eqn.params["reverse"] else parts:

        def step(state: Any, i: Any) -> Any:
            carry, moments = state
            part = replace(run, steps={**run.steps, inner: i}, moments=dict(moments))
            slices = [jax.lax.dynamic_index_in_dim(x, i, keepdims=False) for x in xs]
            results = evaluate(body.jaxpr, body.consts, [*consts, *carry, *slices], inner, part)
            return (results[:num_carry], part.moments), results[num_carry:]

        state = (carry, {name: run.moments[name] for name in names})
        (carry, moments), outputs[first] = jax.lax.scan(
            step, state, jnp.arange(first, end), reverse=eqn.params["reverse"]
        )
        run.moments.update(moments)
    ys = [outputs[first] for first in sorted(outputs)]
    joined = ys[0] if len(ys) == 1 else [jnp.concatenate(pieces) for pieces in zip(*ys, strict=True)]
    return [*carry, *joined]


def _parts(length: int, loop: Scope, run: Run) -> Iterator[tuple[int, int, list[str]]]:
    """First step, the one behind the last, and the inputs to add, for parts of a loop over layers."""
    ranges = dict.fromkeys(run.inside(loop), (0, length))
    for entries in run.actions.values():
        for name, use in itertools.chain.from_iterable(entries.values()):
            if name in ranges and name in run.layers and use.slots[:1] == (loop,):
                ranges[name] = run.layers[name]
    edges = sorted({0, length, *itertools.chain.from_iterable(ranges.values())})
    for first, end in itertools.pairwise(edges):
        yield first, end, [name for name, (a, b) in ranges.items() if a <= first and end <= b]


def _cond(eqn: Any, values: list[Any], branches: Sequence[Scope], run: Run) -> list[Any]:
    """A conditional, each branch of which adds to the sums what it uses."""
    sums = {name: moment for branch in branches for name, moment in run.inside(branch).items()}

    def branch_of(number: int) -> Callable[..., Any]:
        branch = eqn.params["branches"][number]

        def taken(moments: dict[str, SecondMoment], *operands: Any) -> Any:
            part = replace(run, moments=dict(moments))
            results = evaluate(branch.jaxpr, branch.consts, operands, branches[number], part)
            return results, part.moments

        return taken

    index, *operands = values
    results, moments = jax.lax.switch(index, [branch_of(b) for b in range(len(branches))], sums, *operands)
    run.moments.update(moments)
    return results


def _while(eqn: Any, values: list[Any], inner: Scope, run: Run) -> list[Any]:
    """A loop that carries the sums along."""
    num_cond, num_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    condition, body = eqn.params["cond_jaxpr"], eqn.params["body_jaxpr"]
    cond_consts, consts, carry = values[:num_cond], values[num_cond:][:num_body], values[num_cond + num_body :]

    def proceed(state: Any) -> Any:
        (result,) = core.jaxpr_as_fun(condition)(*cond_consts, *state[0])
        return result

    def step(state: Any) -> Any:
        part = replace(run, moments=dict(state[1]))
        return evaluate(body.jaxpr, body.consts, [*consts, *state[0]], inner, part), part.moments

    carry, moments = jax.lax.while_loop(proceed, step, (carry, run.inside(inner)))
    run.moments.update(moments)
    return carry
