"""A product of an activation with a kernel: which axes are the vector, and where in the program it is taken."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from gems_jax.linalg.matrix_dims import MatrixDims, MatrixSpec
from gems_jax.null_space.tracing.kernel_tags import KernelView, Scope, Slot, Step, Tag


class Use(NamedTuple):
    """A product of an activation (or its result, for side ``out``) with a kernel.

    Attributes:
      scope, var: the variable whose second moment is meant.
      axes: its axes that are the vector, in the order in which the kernel flattens them.
      lead: its axes that run along the kernel's batch axes (experts).
      slots: for each batch axis of the kernel, the slot of the stack that this use belongs to.
      is_decoder: whether it depends on an entry of the batch whose name begins with ``decoder_``.
    """

    scope: Scope
    var: Any
    axes: tuple[int, ...]
    lead: tuple[int, ...]
    slots: tuple[Slot, ...]
    is_decoder: bool

    @property
    def positions(self) -> tuple[int, ...]:
        """Sizes of the axes that count vectors."""
        return tuple(n for a, n in enumerate(self.var.aval.shape) if a not in (*self.axes, *self.lead))


@dataclass
class Search:
    """The kernels that are looked for in a program, and all that is found of them, by number of the kernel's leaf.

    Attributes:
      specs, side: see `gems_jax.null_space.tracing.kernel_uses.find_uses`.
      barriers: scopes of scans, loops and branches, whose equations do not run as often as those around them.
      sites: where the moment of an activation is taken.
      uses, roles: products with activations, and the roles that these show.
      elsewhere: where else a kernel goes.
      missed: how a kernel meets activations in a way that is not followed.
      tables: leaves whose rows are looked up.
    """

    specs: Mapping[int, MatrixSpec | None]
    side: str
    barriers: set[Scope] = field(default_factory=lambda: {()})
    sites: dict[Any, Any] = field(default_factory=dict)
    uses: dict[int, dict[Use, None]] = field(default_factory=dict)
    roles: dict[int, MatrixDims] = field(default_factory=dict)
    elsewhere: dict[int, dict[str, None]] = field(default_factory=dict)
    missed: dict[int, dict[str, None]] = field(default_factory=dict)
    tables: dict[int, None] = field(default_factory=dict)

    def frame(self, scope: Scope) -> Scope:
        """The innermost scan, loop or branch around a scope: all within runs equally often."""
        while scope not in self.barriers:
            scope = scope[:-1]
        return scope

    def note(self, operands: Sequence[Tag], text: str) -> None:
        """Says where the kernels among some operands go."""
        for operand in operands:
            if operand.kernel is not None:
                self.elsewhere.setdefault(operand.kernel.leaf, {})[text] = None

    def miss(self, tag: Tag, how: str = "") -> None:
        """Says that whatever a value is computed from meets activations, unfollowed."""
        for leaf, primitive in tag.made_of:
            text = how or f"is multiplied with activations after {primitive!r}, through which it is not followed"
            self.missed.setdefault(leaf, {})[text] = None
        if tag.kernel is not None:
            self.missed.setdefault(tag.kernel.leaf, {})[how] = None


def find_product(eqn: Any, operands: list[Tag], scope: Scope, search: Search) -> frozenset[tuple[int, str]]:
    """Records the input (or output) of a product of an activation with a kernel.

    Returns:
      The kernel that the result is an entry of, see `Tag.made_of`: picked from a stack by ones and zeros.
    """
    nothing: frozenset[tuple[int, str]] = frozenset()
    for i in (0, 1):
        if operands[i].made_of and operands[1 - i].is_data and not operands[1 - i].made_of:
            search.miss(operands[i])
    sides = [i for i in (0, 1) if operands[i].kernel is not None]
    if len(sides) != 1 or (operands[1 - sides[0]].made_of and not operands[1 - sides[0]].is_data):
        search.note(operands, "is multiplied with another kernel")
        return nothing
    at = sides[0]
    kernel, activation = operands[at].kernel, operands[1 - at]
    assert kernel is not None
    contracting, batching = eqn.params["dimension_numbers"]
    contracted = [kernel.axes[a] for a in contracting[at]]
    batched = [kernel.axes[a] for a in batching[at]]
    free = [a for i, a in enumerate(kernel.axes) if i not in (*contracting[at], *batching[at]) and a is not None]
    spec = search.specs[kernel.leaf]
    shape = eqn.invars[at].aval.shape
    if activation.is_one_hot and any(shape[a] > 1 for a in contracting[at]):
        # Ones and zeros take out rows, or whole matrices, as a look-up does.
        kept = [n for a, n in enumerate(shape) if a not in (*contracting[at], *batching[at]) and n > 1]
        if len(kept) > 1:
            return frozenset({(kernel.leaf, "one-hot dot_general")})
        search.tables[kernel.leaf] = None
        return nothing
    if eqn.outvars[0].aval.dtype.kind == "c":
        search.miss(operands[at], "is multiplied with activations as complex numbers")
        return nothing
    partial = {axis for axis, _ in kernel.parts}
    if partial & {*contracted, *batched}:
        search.miss(operands[at], "is multiplied with activations in parts of its inputs or of its stack")
        return nothing
    if any(kernel.axes[a] is None and shape[a] > 1 for a in contracting[at]):
        search.miss(operands[at], "is multiplied with activations after it was copied along an axis that is summed")
        return nothing
    used = tuple(sorted(a for a in contracted if a is not None))
    observed = MatrixDims(used, tuple(sorted(a for a in free if spec is None or a not in _batch_axes(spec))))
    search.roles.setdefault(kernel.leaf, observed)
    if spec is None:
        return nothing
    if partial & set(_batch_axes(spec)):
        search.miss(operands[at], "is multiplied with activations in parts of its stack")
        return nothing
    in_axes, out_axes = _matrix_axes(spec)
    if not _is_role(spec, contracted, batched, in_axes) or (search.side == "out" and partial):
        search.note(operands, f"is used as {observed}, not in the role that matrix_dims gives it")
        return nothing
    numbers = contracting[1 - at], batching[1 - at]
    slots: dict[int, Slot] = dict(kernel.slots)
    slots |= {a: "each" for a in batched if a is not None} | {a: "all" for a in free if a in _batch_axes(spec)}
    if search.side == "in":
        # Contracted axes in the order in which the kernel flattens them.
        order = [numbers[0][contracted.index(a)] for a in in_axes if a in contracted]
        lead = [numbers[1][batched.index(a)] for a in _batch_axes(spec) if a in batched]
        site = _site(scope, eqn.invars[1 - at], activation, order, lead, search)
        if any(isinstance(slot, Step) for slot in slots.values()):
            # Where it is used: outside of the loop it would count for the whole stack.
            site = (scope, eqn.invars[1 - at], tuple(order), tuple(lead))
    else:
        result = _result_axes(eqn, at, kernel)
        lead = [result[a] for a in _batch_axes(spec) if a in batched or slots.get(a) == "all"]
        site = (scope, eqn.outvars[0], tuple(result[a] for a in out_axes if a in result), tuple(lead))
        slots = {a: "each" if slot == "all" else slot for a, slot in slots.items()}
    # A loop that does not enclose the activation sees the same one in all its steps.
    where, var, axes, leading = site
    slots_of_use = tuple(_constant_outside(slots.get(a, "all"), where) for a in _batch_axes(spec))
    use = Use(where, var, axes, leading, slots_of_use, activation.is_decoder)
    search.uses.setdefault(kernel.leaf, {})[use] = None
    return nothing


def _constant_outside(slot: Slot, scope: Scope) -> Slot:
    return "all" if isinstance(slot, tuple) and scope[: len(slot)] != slot else slot


def _is_role(spec: MatrixSpec, contracted: list[Any], batched: list[Any], in_axes: tuple[int, ...]) -> bool:
    def wide(axes: Sequence[Any]) -> set[int]:
        return {a for a in axes if a is not None and spec.shape[a] > 1}

    return wide(contracted) == wide(in_axes) and wide(batched) <= set(_batch_axes(spec))


def _site(scope: Scope, atom: Any, tag: Tag, order: list[int], lead: list[int], search: Search) -> Any:
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


def _result_axes(eqn: Any, at: int, kernel: KernelView) -> dict[int, int]:
    """The product's axis of each of the kernel's axes that it keeps."""
    contracting, batching = eqn.params["dimension_numbers"]
    keep = [[i for i in range(eqn.invars[s].aval.ndim) if i not in (*contracting[s], *batching[s])] for s in (0, 1)]
    first = len(batching[at]) + (len(keep[0]) if at == 1 else 0)
    axes = {kernel.axes[i]: n for n, i in enumerate(batching[at])}
    axes |= {kernel.axes[i]: first + n for n, i in enumerate(keep[at])}
    return {a: n for a, n in axes.items() if a is not None}


def _batch_axes(spec: MatrixSpec) -> tuple[int, ...]:
    return spec.order[: len(spec.batch_shape)]


def _matrix_axes(spec: MatrixSpec) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """In axes and out axes."""
    axes = spec.order[len(spec.batch_shape) :]
    count = 1
    while math.prod(spec.shape[a] for a in axes[:count]) != spec.matrix_shape[0]:
        count += 1
    return axes[:count], axes[count:]
