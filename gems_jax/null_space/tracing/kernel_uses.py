"""Where the program of a forward pass multiplies activations with kernels.

The jaxpr is read, not run: values that are a parameter (cast, transposed, a layer of a stack) are followed to the
products that they enter, through scans, remat, jit, conditionals and loops, and so are activations back to the
value that several kernels share.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from jax.extend import core

from gems_jax.linalg.matrix_dims import MatrixDims, MatrixSpec
from gems_jax.null_space.tracing.kernel_products import Search, Use, find_product
from gems_jax.null_space.tracing.kernel_tags import (
    KERNEL_VIEWS,
    KernelView,
    Scope,
    Tag,
    activation_view,
    enter,
    fresh,
    layer_of,
    made_of,
    scaled_kernel,
    split_kernel,
)
from gems_jax.null_space.tracing.primitives import ALIASES, CALLS, CUMULATIVE, ELEMENTWISE, MOVEMENTS, REDUCTIONS

# Through these a kernel may meet activations without being multiplied with them.
_NO_PRODUCT = ELEMENTWISE | CUMULATIVE | REDUCTIONS | MOVEMENTS | {"dot_general"}


class Uses(NamedTuple):
    """The uses of kernels that a program has, by leaf.

    Attributes:
      uses, roles: products with activations, and the roles that they show.
      elsewhere: where else leaves go, as text.
      missed: how leaves meet activations in a way that is not followed, as text.
      tables: leaves whose rows are looked up.
    """

    uses: dict[int, tuple[Use, ...]]
    roles: dict[int, MatrixDims]
    elsewhere: dict[int, tuple[str, ...]]
    missed: dict[int, tuple[str, ...]]
    tables: tuple[int, ...]


def find_uses(jaxpr: Any, specs: Mapping[int, MatrixSpec | None], side: str, is_decoder: Sequence[bool] = ()) -> Uses:
    """Finds the products of kernels with activations.

    Args:
      jaxpr: of the forward pass; its first inputs are the parameters' leaves.
      specs: roles of the wanted kernels by the number of their leaf; with ``None`` the role is only observed.
      side: ``"in"``: the uses are the activations; ``"out"``: the products.
      is_decoder: for the last inputs, the batch's leaves, whether they belong to the decoder's side.

    Returns:
      `Uses`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gems_jax.linalg.matrix_dims import resolve
      >>> jaxpr = jax.make_jaxpr(lambda w, x: jnp.tanh(x) @ w)(jnp.ones((2, 3)), jnp.ones((5, 2))).jaxpr
      >>> uses = find_uses(jaxpr, {0: resolve(MatrixDims(), (2, 3))}, "in", [False])
      >>> uses.uses[0][0].positions, uses.roles[0]
      ((5,), MatrixDims(in_axes=(0,), out_axes=(1,)))
    """
    search = Search(specs, side)
    num_params = len(jaxpr.invars) - len(is_decoder)
    flags = [False] * num_params + list(is_decoder)
    tags = [
        replace(
            fresh((), var, flag, i >= num_params),
            kernel=KernelView(i, tuple(range(var.aval.ndim))) if i in specs else None,
        )
        for i, (var, flag) in enumerate(zip(jaxpr.invars, flags, strict=True))
    ]
    _walk(jaxpr, (), tags, search)
    texts = lambda by_leaf: {leaf: tuple(entries) for leaf, entries in by_leaf.items()}  # noqa: E731
    return Uses(texts(search.uses), search.roles, texts(search.elsewhere), texts(search.missed), tuple(search.tables))


def inner_jaxpr(eqn: Any) -> tuple[Any, Any]:
    """The jaxpr of a call and its constants."""
    inner = eqn.params[CALLS[eqn.primitive.name]]
    return (inner.jaxpr, inner.consts) if hasattr(inner, "consts") else (inner, ())


def bind_again(eqn: Any, values: Sequence[Any]) -> Sequence[Any]:
    """The results of an equation's primitive on other values, with its parameters."""
    params = eqn.primitive.get_bind_params(eqn.params)
    # Some versions of jax give (functions, params), others the parameters alone.
    functions, params = params if isinstance(params, tuple) else ((), params)
    out = eqn.primitive.bind(*functions, *values, **params)
    return out if eqn.primitive.multiple_results else [out]


def scan_counts(eqn: Any) -> tuple[int, int]:
    """How many of a scan's operands are constants, and how many of the others are its carry."""
    if "num_consts" in eqn.params:  # jax before 0.11
        return eqn.params["num_consts"], eqn.params["num_carry"]
    consts, carry, _ = eqn.params["ft_in"].update(range(len(eqn.invars))).unpack()
    return len(list(consts)), len(list(carry))


def _walk(jaxpr: Any, scope: Scope, args: Sequence[Tag], search: Search) -> list[Tag]:
    tags: dict[Any, Tag] = dict(zip(jaxpr.invars, args, strict=True))
    tags.update({var: fresh(scope, var) for var in jaxpr.constvars})

    def tag_of(atom: Any) -> Tag:
        return fresh(scope, atom) if isinstance(atom, core.Literal) else tags[atom]

    for number, eqn in enumerate(jaxpr.eqns):
        operands = [tag_of(atom) for atom in eqn.invars]
        tags.update(zip(eqn.outvars, _equation(eqn, operands, scope, number, search), strict=True))
    return [tag_of(atom) for atom in jaxpr.outvars]


def _equation(eqn: Any, operands: list[Tag], scope: Scope, number: int, search: Search) -> list[Tag]:
    name = eqn.primitive.name
    if name in CALLS:
        return _walk(inner_jaxpr(eqn)[0], (*scope, (number, 0)), operands, search)
    decoder, data = any(operand.is_decoder for operand in operands), any(operand.is_data for operand in operands)
    parts = frozenset() if name in _LOOPS or _looks_up(eqn, operands, search) else made_of(operands, name)
    results = [fresh(scope, var, decoder, data, parts) for var in eqn.outvars]
    if name in _LOOPS:
        return _LOOPS[name](eqn, operands, results, scope, number, search)
    if name in ALIASES and len(results) == len(operands):
        return operands
    if name in KERNEL_VIEWS:
        if (kernel := operands[0].kernel) is not None:
            kernel = KERNEL_VIEWS[name](eqn, kernel)
            if kernel is None:
                search.note(operands[:1], f"goes through {name!r} in a way that is not followed")
                return results
            return [replace(results[0], kernel=kernel, made_of=frozenset())]
        view = activation_view(eqn, operands[0])
        if view is None:
            return [replace(results[0], is_one_hot=operands[0].is_one_hot)]
        return [replace(operands[0], view=view)]
    if name == "split" and operands[0].kernel is not None:
        parts_of = split_kernel(eqn, operands[0].kernel)
        return [replace(r, kernel=k, made_of=frozenset()) for r, k in zip(results, parts_of, strict=True)]
    if (kernel := scaled_kernel(eqn, operands)) is not None:
        return [replace(results[0], kernel=kernel, made_of=frozenset())]
    if name == "dot_general":
        picked = find_product(eqn, operands, scope, search)
        return [replace(results[0], made_of=picked)] if picked else results
    if name == "eq" and _is_one_hot(eqn, operands):
        return [replace(results[0], is_one_hot=True)]
    search.note(operands, f"goes into {name!r}, which calibration does not look into")
    if data and name not in _NO_PRODUCT:
        for operand in operands:
            if not operand.is_data or operand.made_of:
                search.miss(operand, f"goes into {name!r} with activations, which calibration does not look into")
    return results


def _is_one_hot(eqn: Any, operands: list[Tag]) -> bool:
    """Whether numbers are compared with a list of them that does not depend on the batch."""
    lists = all(getattr(atom.aval, "shape", ()) for atom in eqn.invars)
    return lists and not all(operand.is_data for operand in operands)


def _looks_up(eqn: Any, operands: list[Tag], search: Search) -> bool:
    """Whether an equation looks up rows of a table: single axes, not matrices, at indices."""
    if eqn.primitive.name != "gather" or sum(n > 1 for n in eqn.params["slice_sizes"]) > 1:
        return False
    table = operands[0]
    leaves = {leaf for leaf, _ in table.made_of} if table.kernel is None else {table.kernel.leaf}
    search.tables.update(dict.fromkeys(sorted(leaves)))
    return True


# Loops and branches


def _scan(eqn: Any, operands: list[Tag], results: list[Tag], scope: Scope, number: int, search: Search) -> list[Tag]:
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
        search.note([operand], "is changed in the carry of a scan")
        tags.append(fresh(inner, var, decoder, True, made_of([operand], "scan")))
    first = num_consts + num_carry
    for operand, var in zip(operands[first:], body.invars[first:], strict=True):
        tag = fresh(inner, var, operand.is_decoder, operand.is_data, operand.made_of)
        tag = replace(tag, is_one_hot=operand.is_one_hot)
        if operand.kernel is not None:
            tag = replace(tag, kernel=layer_of(operand.kernel, inner))
        tags.append(tag)
    return _after(results, _walk(body, inner, tags, search), "scan")


def _cond(eqn: Any, operands: list[Tag], results: list[Tag], scope: Scope, number: int, search: Search) -> list[Tag]:
    for b, branch in enumerate(eqn.params["branches"]):
        inner = (*scope, (number, b))
        search.barriers.add(inner)
        pairs = zip(operands[1:], branch.jaxpr.invars, strict=True)
        tags = [enter(o, inner, var, o.is_decoder) for o, var in pairs]
        results = _after(results, _walk(branch.jaxpr, inner, tags, search), "cond")
    return results


def _while(eqn: Any, operands: list[Tag], results: list[Tag], scope: Scope, number: int, search: Search) -> list[Tag]:
    num_cond, body = eqn.params["cond_nconsts"], eqn.params["body_jaxpr"].jaxpr
    num_consts = eqn.params["body_nconsts"]
    inner = (*scope, (number, 0))
    search.barriers.add(inner)
    search.note(operands[:num_cond], "goes into the condition of a while loop")
    decoder = any(operand.is_decoder for operand in operands)
    tags = []
    for j, (operand, var) in enumerate(zip(operands[num_cond:], body.invars, strict=True)):
        tag = enter(operand, inner, var, decoder)
        if j >= num_consts and body.outvars[j - num_consts] is not var:
            search.note([operand], "is changed in a while loop")
            tag = replace(tag, kernel=None, is_data=True, made_of=made_of([operand], "while"))
        tags.append(tag)
    return _after(results, _walk(body, inner, tags, search), "while")


def _after(results: list[Tag], inner: list[Tag], primitive: str) -> list[Tag]:
    """Results of a loop or branch: of kernels where what comes out inside is of kernels."""
    return [
        replace(result, made_of=result.made_of | made_of([tag], primitive))
        for result, tag in zip(results, inner, strict=True)
    ]


_LOOPS: dict[str, Callable[..., list[Tag]]] = {"scan": _scan, "cond": _cond, "while": _while}
