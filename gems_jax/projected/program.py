"""A program run again with its kernels' products replaced, see `gems_jax.projected.kernel_product`.

Scans, recomputation (`jax.checkpoint` with its policy), conditionals and jit are kept as they are; a kernel that goes
anywhere else than into products is taken as the plain array that it is, and said to be.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from gems_jax.null_space.tracing.kernel_uses import bind_again, inner_jaxpr, scan_counts
from gems_jax.null_space.tracing.primitives import CALLS
from gems_jax.projected.kernel_notes import Notes
from gems_jax.projected.kernel_product import kernel_product
from gems_jax.projected.kernel_view import (
    KernelView,
    Refused,
    entered,
    layer,
    reshaped,
    stack_first,
    with_dims,
)

# These change a kernel's values in a way that passes cotangents on.
_PASSED_ON = frozenset(("convert_element_type", "copy", "copy_p", "reduce_precision", "sharding_constraint", "pvary"))
_RECOMPUTED = frozenset(("checkpoint", "remat", "remat2"))
_INLINED = frozenset(("jit", "pjit", "closed_call", "core_call"))


def run_program(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any], notes: Notes) -> list[Any]:
    """The results of a jaxpr, some of whose arguments are `KernelView`s; results may be views too.

    Args:
      jaxpr: open.
      consts, args: values of its variables.
      notes: told what happens to kernels.
    """
    values: dict[Any, Any] = {}

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    values.update(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))
    for eqn in jaxpr.eqns:
        operands = [read(atom) for atom in eqn.invars]
        has_views = any(_is_view(x) for x in operands)
        results = _with_views(eqn, operands, notes) if has_views else bind_again(eqn, operands)
        values.update(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _is_view(x: Any) -> bool:
    return isinstance(x, KernelView)


def plain(values: Sequence[Any], notes: Notes, why: str) -> list[Any]:
    """The values, kernels among them as the arrays that they are, and said to be."""
    for x in values:
        if _is_view(x):
            notes.refuse(x.form.path, why)
    return [x.value if _is_view(x) else x for x in values]


def _with_views(eqn: Any, operands: list[Any], notes: Notes) -> Sequence[Any]:
    name = eqn.primitive.name
    if name in _INLINED:
        jaxpr, consts = inner_jaxpr(eqn)
        return run_program(jaxpr, consts, operands, notes)
    if name in _RECOMPUTED:
        return _recomputed(eqn, operands, notes)
    if name == "scan":
        return _scan(eqn, operands, notes)
    if name == "cond":
        return _cond(eqn, operands, notes)
    if name == "optimization_barrier":
        results = bind_again(eqn, [x.value if _is_view(x) else x for x in operands])
        return [with_dims(x, y, x.form.dims) if _is_view(x) else y for x, y in zip(operands, results, strict=True)]
    try:
        if name == "dot_general":
            return [_product(eqn, operands, notes)]
        if _is_view(operands[0]) and not any(map(_is_view, operands[1:])):
            moved_view = _moved(eqn, operands[0], operands[1:])
            if moved_view is not None:
                return [moved_view]
        raise Refused(f"it goes into {name}")
    except Refused as refused:
        return bind_again(eqn, plain(operands, notes, str(refused)))


def _product(eqn: Any, operands: list[Any], notes: Notes) -> jax.Array:
    first, second = operands
    if _is_view(first) and _is_view(second):
        raise Refused("it is multiplied with another kernel")
    is_first = _is_view(first)
    view, x = (first, second) if is_first else (second, first)
    bind = (lambda x, w: bind_again(eqn, [w, x])[0]) if is_first else (lambda x, w: bind_again(eqn, [x, w])[0])
    return kernel_product(view, x, bind, eqn.params, is_first, notes)


def _moved(eqn: Any, view: KernelView, others: list[Any]) -> KernelView | None:
    """The view behind an operation that moves its entries, ``None`` for any other operation.

    Raises:
      Refused: it moves them in a way that leaves no matrix.
    """
    name, params, dims = eqn.primitive.name, eqn.params, view.form.dims
    if name in _PASSED_ON:
        return with_dims(view, bind_again(eqn, [view.value])[0], dims)
    if name == "transpose":
        return with_dims(view, bind_again(eqn, [view.value])[0], [dims[i] for i in params["permutation"]])
    if name in ("reshape", "squeeze", "expand_dims"):
        if params.get("dimensions") is not None and name == "reshape":
            return None
        return reshaped(view, bind_again(eqn, [view.value])[0], eqn.outvars[0].aval.shape)
    if name == "broadcast_in_dim" and eqn.outvars[0].aval.size == view.value.size:
        return reshaped(view, bind_again(eqn, [view.value, *others])[0], eqn.outvars[0].aval.shape)
    if name in ("slice", "dynamic_slice"):
        return _sliced(eqn, view, others)
    return None


def _sliced(eqn: Any, view: KernelView, starts: list[Any]) -> KernelView:
    shape, sizes = view.value.shape, eqn.outvars[0].aval.shape
    is_dynamic = eqn.primitive.name == "dynamic_slice"
    starts = starts if is_dynamic else list(eqn.params["start_indices"])
    cut = [i for i, (size, whole) in enumerate(zip(sizes, shape, strict=True)) if size != whole]
    if len(cut) > 1 or any(sizes[i] != 1 for i in cut):
        raise Refused("a part of it is sliced out")
    value = bind_again(eqn, [view.value, *(starts if is_dynamic else [])])[0]
    if not cut:
        return with_dims(view, value, view.form.dims)
    (dim,) = cut
    # The program's own slice takes a number out of range as the nearest in it.
    number = jnp.clip(starts[dim], 0, shape[dim] - 1)
    return layer(view, value, dim, lambda x, axis: jax.lax.dynamic_slice_in_dim(x, number, 1, axis))


def _recomputed(eqn: Any, operands: list[Any], notes: Notes) -> Sequence[Any]:
    jaxpr, consts = inner_jaxpr(eqn)

    # What a policy saves is not known here: without one nothing is, and everything otherwise.
    inside = notes.repeated(0 if eqn.params["policy"] is None else 1)

    def again(*args: Any) -> list[Any]:
        return plain(run_program(jaxpr, consts, args, inside), notes, "it comes out of a recomputed function")

    return jax.checkpoint(again, prevent_cse=eqn.params["prevent_cse"], policy=eqn.params["policy"])(*operands)


def _cond(eqn: Any, operands: list[Any], notes: Notes) -> Sequence[Any]:
    def branch_of(branch: Any) -> Callable[..., list[Any]]:
        def taken(*args: Any) -> list[Any]:
            results = run_program(branch.jaxpr, branch.consts, args, notes)
            return plain(results, notes, "it comes out of a conditional")

        return taken

    index, *rest = operands
    return jax.lax.switch(index, [branch_of(branch) for branch in eqn.params["branches"]], *rest)


def _scan(eqn: Any, operands: list[Any], notes: Notes) -> Sequence[Any]:
    body, (num_consts, num_carry) = eqn.params["jaxpr"], scan_counts(eqn)
    consts, carry, xs = operands[:num_consts], operands[num_consts:][:num_carry], operands[num_consts + num_carry :]
    carry = plain(carry, notes, "a loop carries it along")
    over: list[Any] = []
    for x in xs:
        try:
            over.append(stack_first(x) if _is_view(x) else x)
        except Refused as refused:
            over += plain([x], notes, str(refused))

    inside = notes.repeated(eqn.params["length"])

    def step(carry: Sequence[Any], xs: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        xs = [entered(x) if _is_view(x) else x for x in xs]
        results = run_program(body.jaxpr, body.consts, [*consts, *carry, *xs], inside)
        results = plain(results, notes, "it comes out of a loop")
        return results[:num_carry], results[num_carry:]

    names = ("length", "reverse", "unroll")
    carry, ys = jax.lax.scan(step, carry, over, **{name: eqn.params[name] for name in names})
    return [*carry, *ys]


assert set(CALLS) >= _INLINED | _RECOMPUTED
