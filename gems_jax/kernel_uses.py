"""Where the program of a forward pass multiplies activations with kernels.

The jaxpr is read, not run: values that are a parameter (cast, transposed, a layer of a stack) are followed to the
products that they enter, through scans, remat, jit, conditionals and loops, and so are activations back to the
value that several kernels share.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from jax.extend import core

from gems_jax.kernel_tags import KERNEL_VIEWS, Kernel, Place, Scope, Tag, activation_view, enter, fresh, layer_of
from gems_jax.matrix_dims import MatrixDims, MatrixSpec

# Primitives that only pass a value on, as far as its identity as a kernel or an input is concerned.
_ALIASES = {
    "convert_element_type",
    "copy",
    "copy_p",
    "optimization_barrier",
    "pvary",
    "reduce_precision",
    "sharding_constraint",
    "stop_gradient",
}
# Primitives that are a call of an inner jaxpr on all their operands.
CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
    "checkpoint": "jaxpr",
    "remat": "jaxpr",
    "remat2": "jaxpr",
}


class Use(NamedTuple):
    """A product of an activation (or its result, for side ``out``) with a kernel.

    Attributes:
      scope, var: the variable whose second moment is meant.
      axes: its axes that are the vector, in the order in which the kernel flattens them.
      lead: its axes that run along the kernel's batch axes (experts).
      places: for each batch axis of the kernel, where in the stack this use belongs.
      is_decoder: whether it depends on an entry of the batch whose name begins with ``decoder_``.
    """

    scope: Scope
    var: Any
    axes: tuple[int, ...]
    lead: tuple[int, ...]
    places: tuple[Place, ...]
    is_decoder: bool

    @property
    def positions(self) -> tuple[int, ...]:
        """Sizes of the axes that count vectors."""
        return tuple(n for a, n in enumerate(self.var.aval.shape) if a not in (*self.axes, *self.lead))


class Uses(NamedTuple):
    """What was found: uses and observed roles by leaf, and where else leaves go, as text."""

    uses: dict[int, tuple[Use, ...]]
    roles: dict[int, MatrixDims]
    elsewhere: dict[int, tuple[str, ...]]


@dataclass
class _Search:
    specs: Mapping[int, MatrixSpec | None]
    side: str
    barriers: set[Scope] = field(default_factory=lambda: {()})
    sites: dict[Any, Any] = field(default_factory=dict)
    uses: dict[int, dict[Use, None]] = field(default_factory=dict)
    roles: dict[int, MatrixDims] = field(default_factory=dict)
    elsewhere: dict[int, dict[str, None]] = field(default_factory=dict)

    def frame(self, scope: Scope) -> Scope:
        """The innermost scan, loop or branch around a scope: all within runs equally often."""
        while scope not in self.barriers:
            scope = scope[:-1]
        return scope


def find_uses(jaxpr: Any, specs: Mapping[int, MatrixSpec | None], side: str, is_decoder: Sequence[bool] = ()) -> Uses:
    """Finds the products of kernels with activations.

    Args:
      jaxpr: of the forward pass; its first inputs are the parameters' leaves.
      specs: roles of the wanted kernels by the number of their leaf; with ``None`` the role is only observed.
      side: ``"in"``: the uses are the activations; ``"out"``: the products.
      is_decoder: for the last inputs, whether they belong to the decoder's side.

    Returns:
      `Uses`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gems_jax.matrix_dims import resolve
      >>> jaxpr = jax.make_jaxpr(lambda w, x: jnp.tanh(x) @ w)(jnp.ones((2, 3)), jnp.ones((5, 2))).jaxpr
      >>> found = find_uses(jaxpr, {0: resolve(MatrixDims(), (2, 3))}, "in")
      >>> found.uses[0][0].positions, found.roles[0]
      ((5,), MatrixDims(in_axes=(0,), out_axes=(1,)))
    """
    search = _Search(specs, side)
    flags = [False] * (len(jaxpr.invars) - len(is_decoder)) + list(is_decoder)
    tags = [
        replace(
            fresh((), var, flag),
            kernel=Kernel(i, tuple(range(var.aval.ndim))) if i in specs else None,
        )
        for i, (var, flag) in enumerate(zip(jaxpr.invars, flags, strict=True))
    ]
    _walk(jaxpr, (), tags, search)
    return Uses(
        {leaf: tuple(uses) for leaf, uses in search.uses.items()},
        search.roles,
        {leaf: tuple(texts) for leaf, texts in search.elsewhere.items()},
    )


def inner_jaxpr(eqn: Any) -> tuple[Any, Any]:
    """The jaxpr of a call and its constants."""
    inner = eqn.params[CALLS[eqn.primitive.name]]
    return (inner.jaxpr, inner.consts) if hasattr(inner, "consts") else (inner, ())


def scan_counts(eqn: Any) -> tuple[int, int]:
    """How many of a scan's operands are constants, and how many of the others are its carry."""
    if "num_consts" in eqn.params:  # jax before 0.11
        return eqn.params["num_consts"], eqn.params["num_carry"]
    consts, carry, _ = eqn.params["ft_in"].update(range(len(eqn.invars))).unpack()
    return len(list(consts)), len(list(carry))


def _walk(jaxpr: Any, scope: Scope, args: Sequence[Tag], search: _Search) -> list[Tag]:
    tags: dict[Any, Tag] = dict(zip(jaxpr.invars, args, strict=True))
    tags.update({var: fresh(scope, var, False) for var in jaxpr.constvars})

    def tag_of(atom: Any) -> Tag:
        return fresh(scope, atom, False) if isinstance(atom, core.Literal) else tags[atom]

    for number, eqn in enumerate(jaxpr.eqns):
        operands = [tag_of(atom) for atom in eqn.invars]
        tags.update(zip(eqn.outvars, _equation(eqn, operands, scope, number, search), strict=True))
    return [tag_of(atom) for atom in jaxpr.outvars]


def _equation(eqn: Any, operands: list[Tag], scope: Scope, number: int, search: _Search) -> list[Tag]:
    name = eqn.primitive.name
    if name in CALLS:
        return _walk(inner_jaxpr(eqn)[0], (*scope, (number, 0)), operands, search)
    decoder = any(operand.is_decoder for operand in operands)
    results = [fresh(scope, var, decoder) for var in eqn.outvars]
    if name in _LOOPS:
        return _LOOPS[name](eqn, operands, results, scope, number, search)
    if name in _ALIASES and len(results) == len(operands):
        return operands
    if name in KERNEL_VIEWS:
        if (kernel := operands[0].kernel) is not None:
            kernel = KERNEL_VIEWS[name](eqn, kernel)
            if kernel is None:
                _note(operands[:1], f"goes through {name!r} in a way that is not followed", search)
            return [replace(results[0], kernel=kernel)]
        view = activation_view(eqn, operands[0])
        return results if view is None else [replace(operands[0], view=view)]
    if name == "dot_general":
        _product(eqn, operands, scope, search)
    else:
        _note(operands, f"goes into {name!r}, which calibration does not look into", search)
    return results


def _note(operands: Sequence[Tag], text: str, search: _Search) -> None:
    for operand in operands:
        if operand.kernel is not None:
            search.elsewhere.setdefault(operand.kernel.leaf, {})[text] = None


# Products


def _product(eqn: Any, operands: list[Tag], scope: Scope, search: _Search) -> None:
    """Records the input (or output) of a product of an activation with a kernel."""
    sides = [i for i in (0, 1) if operands[i].kernel is not None]
    if len(sides) != 1:
        _note(operands, "is multiplied with another kernel", search)
        return
    at = sides[0]
    kernel, activation = operands[at].kernel, operands[1 - at]
    assert kernel is not None
    contracting, batching = eqn.params["dimension_numbers"]
    contracted = [kernel.axes[a] for a in contracting[at]]
    batched = [kernel.axes[a] for a in batching[at]]
    free = [a for i, a in enumerate(kernel.axes) if i not in (*contracting[at], *batching[at]) and a is not None]
    spec = search.specs[kernel.leaf]
    used = tuple(sorted(a for a in contracted if a is not None))
    observed = MatrixDims(used, tuple(sorted(a for a in free if spec is None or a not in _batch_axes(spec))))
    search.roles.setdefault(kernel.leaf, observed)
    if spec is None:
        return
    in_axes, out_axes = _matrix_axes(spec)
    if not _is_role(spec, contracted, batched, in_axes) or (search.side == "out" and not kernel.is_whole):
        _note(operands, f"is used as {observed}, not in the role that matrix_dims gives it", search)
        return
    numbers = contracting[1 - at], batching[1 - at]
    places: dict[int, Place] = dict(kernel.places)
    places |= {a: "each" for a in batched if a is not None} | {a: "all" for a in free if a in _batch_axes(spec)}
    if search.side == "in":
        # Contracted axes in the order in which the kernel flattens them.
        order = [numbers[0][contracted.index(a)] for a in in_axes if a in contracted]
        lead = [numbers[1][batched.index(a)] for a in _batch_axes(spec) if a in batched]
        site = _site(scope, eqn.invars[1 - at], activation, order, lead, search)
    else:
        result = _result_axes(eqn, at, kernel)
        lead = [result[a] for a in _batch_axes(spec) if a in batched or places.get(a) == "all"]
        site = (scope, eqn.outvars[0], tuple(result[a] for a in out_axes if a in result), tuple(lead))
        places = {a: "each" if place == "all" else place for a, place in places.items()}
    # A loop that does not enclose the activation sees the same one in all its steps.
    where, var, axes, leading = site
    at_places = tuple(_constant_outside(places.get(a, "all"), where) for a in _batch_axes(spec))
    use = Use(where, var, axes, leading, at_places, activation.is_decoder)
    search.uses.setdefault(kernel.leaf, {})[use] = None


def _constant_outside(place: Place, scope: Scope) -> Place:
    return "all" if isinstance(place, tuple) and scope[: len(place)] != place else place


def _is_role(spec: MatrixSpec, contracted: list[Any], batched: list[Any], in_axes: tuple[int, ...]) -> bool:
    def wide(axes: Sequence[Any]) -> set[int]:
        return {a for a in axes if a is not None and spec.shape[a] > 1}

    return wide(contracted) == wide(in_axes) and wide(batched) <= set(_batch_axes(spec))


def _site(scope: Scope, atom: Any, tag: Tag, order: list[int], lead: list[int], search: _Search) -> Any:
    """Where an activation's moment is taken: scope, variable, axes of the vector, axes along the kernel's batch.

    One site for all users of the value: the first one's operand, in its precision and layout, unless that is made
    anew in every step of a loop or has its positions in another order.
    """
    axes = tuple(a for i in order for a in tag.view[i])
    leading = tuple(a for i in lead for a in tag.view[i])
    positions = [a for i, group in enumerate(tag.view) if i not in (*order, *lead) for a in group]
    if search.frame(scope) == search.frame(tag.scope) and positions == sorted(positions):
        site = (scope, atom, tuple(order), tuple(lead))
    else:
        site = (tag.scope, tag.var, axes, leading)
    return search.sites.setdefault((tag.scope, tag.var, axes, leading), site)


def _result_axes(eqn: Any, at: int, kernel: Kernel) -> dict[int, int]:
    """The product's axis of each of the kernel's axes that it keeps."""
    contracting, batching = eqn.params["dimension_numbers"]
    keep = [[i for i in range(eqn.invars[s].aval.ndim) if i not in (*contracting[s], *batching[s])] for s in (0, 1)]
    first = len(batching[at]) + (len(keep[0]) if at == 1 else 0)
    found = {kernel.axes[i]: n for n, i in enumerate(batching[at])}
    found |= {kernel.axes[i]: first + n for n, i in enumerate(keep[at])}
    return {a: n for a, n in found.items() if a is not None}


def _batch_axes(spec: MatrixSpec) -> tuple[int, ...]:
    return spec.order[: len(spec.batch_shape)]


def _matrix_axes(spec: MatrixSpec) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """In axes and out axes."""
    axes = spec.order[len(spec.batch_shape) :]
    count = 1
    while math.prod(spec.shape[a] for a in axes[:count]) != spec.matrix_shape[0]:
        count += 1
    return axes[:count], axes[count:]


# Loops and branches


def _scan(eqn: Any, operands: list[Tag], results: list[Tag], scope: Scope, number: int, search: _Search) -> list[Tag]:
    body, (num_consts, num_carry) = eqn.params["jaxpr"].jaxpr, scan_counts(eqn)
    inner = (*scope, (number, 0))
    search.barriers.add(inner)
    decoder = any(operand.is_decoder for operand in operands)
    tags = list(operands[:num_consts])
    for j in range(num_carry):
        operand, var = operands[num_consts + j], body.invars[num_consts + j]
        if body.outvars[j] is var:
            tags.append(operand)  # passed on from step to step as it is: a constant
            continue
        _note([operand], "is changed in the carry of a scan", search)
        tags.append(fresh(inner, var, decoder))
    first = num_consts + num_carry
    for operand, var in zip(operands[first:], body.invars[first:], strict=True):
        tag = fresh(inner, var, operand.is_decoder)
        if operand.kernel is not None:
            tag = replace(tag, kernel=layer_of(operand.kernel, inner))
        tags.append(tag)
    _walk(body, inner, tags, search)
    return results


def _cond(eqn: Any, operands: list[Tag], results: list[Tag], scope: Scope, number: int, search: _Search) -> list[Tag]:
    for b, branch in enumerate(eqn.params["branches"]):
        inner = (*scope, (number, b))
        search.barriers.add(inner)
        pairs = zip(operands[1:], branch.jaxpr.invars, strict=True)
        _walk(branch.jaxpr, inner, [enter(o, inner, var, o.is_decoder) for o, var in pairs], search)
    return results


def _while(eqn: Any, operands: list[Tag], results: list[Tag], scope: Scope, number: int, search: _Search) -> list[Tag]:
    num_cond, body = eqn.params["cond_nconsts"], eqn.params["body_jaxpr"].jaxpr
    num_consts = eqn.params["body_nconsts"]
    inner = (*scope, (number, 0))
    search.barriers.add(inner)
    _note(operands[:num_cond], "goes into the condition of a while loop", search)
    decoder = any(operand.is_decoder for operand in operands)
    tags = []
    for j, (operand, var) in enumerate(zip(operands[num_cond:], body.invars, strict=True)):
        tag = enter(operand, inner, var, decoder)
        if j >= num_consts and body.outvars[j - num_consts] is not var:
            _note([operand], "is changed in a while loop", search)
            tag = replace(tag, kernel=None)
        tags.append(tag)
    _walk(body, inner, tags, search)
    return results


_LOOPS: dict[str, Callable[..., list[Tag]]] = {"scan": _scan, "cond": _cond, "while": _while}
