"""Second moments of every kernel's inputs or outputs, from the program of a forward pass.

The forward pass is traced to a jaxpr and evaluated again, step by step; wherever a product contracts an
activation with a kernel, the activation's second moment is added. This sees any model (NNX, Linen, plain
functions) as it is, through scanned layers, remat and jit; an input that several kernels share is one variable
and counted once; and since the pass's own outputs are not asked for, the compiler drops what only they need
(the vocabulary logits).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from gems_jax.leaf_path import leaf_path
from gems_jax.matrix_dims import MatrixSpec
from gems_jax.second_moment import SecondMoment, outer_sum

PyTree = Any

# Primitives that only pass a value on, as far as its identity as a kernel or an input is concerned.
_ALIASES = {"convert_element_type", "copy", "copy_p", "sharding_constraint", "reduce_precision", "optimization_barrier"}
# Primitives that are a call of an inner jaxpr on all their operands.
_CALLS = {
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


@dataclass(frozen=True)
class Kernel:
    """A value that is a parameter, or a slice of a stacked one: its leaf and what became of its axes."""

    index: int
    axes: tuple[int, ...]


@dataclass
class Tagged:
    """A value with its origin: the kernel it is, and the input it stands for (shared by its aliases)."""

    value: Any
    kernel: Kernel | None
    identity: Any


@dataclass
class Found:
    """Moments found so far: by kernel leaf the key of its input, by key the moment."""

    inputs: dict[int, Any]
    moments: dict[Any, SecondMoment]


@dataclass(frozen=True)
class Wanted:
    """What to look for: specs of the kernels by leaf index, the side, and masks by their shape."""

    specs: Mapping[int, MatrixSpec]
    side: str
    masks: Mapping[tuple[int, ...], jax.Array]


def kernel_moments(
    apply: Callable[[PyTree, PyTree], Any],
    params: PyTree,
    batch: PyTree,
    specs: Mapping[str, MatrixSpec],
    side: str = "in",
    masks: Mapping[tuple[int, ...], jax.Array] | None = None,
) -> tuple[dict[str, str], dict[str, SecondMoment]]:
    """Second moments of all named kernels in one forward pass.

    Args:
      apply: ``apply(params, batch)``, any differentiable JAX code.
      params: tree of arrays.
      batch: tree of arrays.
      specs: matrix roles of the wanted kernels, by path.
      side: ``"in"``: what each kernel is multiplied with; ``"out"``: the product.
      masks: which positions count, by shape: one of shape ``[B, S]`` counts for activations ``[B, S, d]``.

    Returns:
      ``(inputs, moments)``: the name of each kernel's input (the path of the first kernel that has it), and
      the `SecondMoment` of each, ``[*batch, d, d]`` for stacked kernels whose inputs differ by layer. Kernels
      that the pass never multiplies with an activation are absent.

    Example:
      >>> import jax.numpy as jnp
      >>> from gems_jax.matrix_dims import MatrixDims, resolve
      >>> params = {"q": jnp.ones((2, 3)), "k": jnp.ones((2, 3))}
      >>> apply = lambda p, x: (x @ p["q"]) * (x @ p["k"])
      >>> specs = {name: resolve(MatrixDims(), (2, 3)) for name in params}
      >>> inputs, moments = kernel_moments(apply, params, jnp.array([[1.0, 2.0]]), specs)
      >>> inputs, moments["k"].matrix().tolist()
      ({'q': 'k', 'k': 'k'}, [[1.0, 2.0], [2.0, 4.0]])
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    paths = [leaf_path(path) for path, _ in leaves]
    closed = jax.make_jaxpr(apply)(params, batch)
    wanted = Wanted({i: specs[p] for i, p in enumerate(paths) if p in specs}, side, masks or {})
    tagged = [
        Tagged(leaf, Kernel(i, tuple(range(leaf.ndim))) if i in wanted.specs else None, object())
        for i, (_, leaf) in enumerate(leaves)
    ]
    tagged += [Tagged(leaf, None, object()) for leaf in jax.tree.leaves(batch)]
    found = Found({}, {})
    _evaluate(closed.jaxpr, closed.consts, tagged, wanted, found)
    order = sorted(found.inputs, key=lambda i: paths[i])
    names: dict[Any, str] = {}
    for i in order:
        names.setdefault(found.inputs[i], paths[i])
    inputs = {paths[i]: names[found.inputs[i]] for i in found.inputs}
    return inputs, {name: found.moments[key] for key, name in names.items()}


def _evaluate(jaxpr: Any, consts: Any, args: list[Tagged], wanted: Wanted, found: Found) -> list[Tagged]:
    """Evaluates a jaxpr on tagged values, adding what it finds."""
    environment: dict[Any, Tagged] = {}

    def read(atom: Any) -> Tagged:
        return Tagged(atom.val, None, object()) if isinstance(atom, core.Literal) else environment[atom]

    environment.update(zip(jaxpr.constvars, (Tagged(c, None, object()) for c in consts), strict=True))
    environment.update(zip(jaxpr.invars, args, strict=True))
    for eqn in jaxpr.eqns:
        operands = [read(atom) for atom in eqn.invars]
        results = _equation(eqn, operands, wanted, found)
        environment.update(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _equation(eqn: Any, operands: list[Tagged], wanted: Wanted, found: Found) -> list[Tagged]:
    name = eqn.primitive.name
    if name in _CALLS:
        inner = eqn.params[_CALLS[name]]
        jaxpr, consts = (inner.jaxpr, inner.consts) if hasattr(inner, "consts") else (inner, ())
        return _evaluate(jaxpr, consts, operands, wanted, found)
    if name == "scan":
        return _scan(eqn, operands, wanted, found)
    values = _bind(eqn, [operand.value for operand in operands])
    if name in _ALIASES and len(values) == len(operands):
        return [Tagged(v, o.kernel, o.identity) for v, o in zip(values, operands, strict=True)]
    if name == "transpose" and operands[0].kernel is not None:
        axes = tuple(operands[0].kernel.axes[a] for a in eqn.params["permutation"])
        return [Tagged(values[0], Kernel(operands[0].kernel.index, axes), object())]
    if name == "dot_general":
        _product(eqn, operands, values[0], wanted, found)
    return [Tagged(value, None, object()) for value in values]


def _bind(eqn: Any, values: list[Any]) -> list[Any]:
    params = eqn.primitive.get_bind_params(eqn.params)
    # jax before 0.10 gives (functions, params), later ones the parameters alone.
    functions, params = params if isinstance(params, tuple) else ((), params)
    out = eqn.primitive.bind(*functions, *values, **params)
    return list(out) if eqn.primitive.multiple_results else [out]


def _product(eqn: Any, operands: list[Tagged], product: Any, wanted: Wanted, found: Found) -> None:
    """Records the input (or output) of a product of an activation with a kernel."""
    sides = [i for i in (0, 1) if operands[i].kernel is not None]
    if len(sides) != 1:
        return
    at = sides[0]
    kernel, activation = operands[at].kernel, operands[1 - at]
    assert kernel is not None
    spec = wanted.specs[kernel.index]
    contracting, batching = eqn.params["dimension_numbers"]
    batch_axes = len(spec.batch_shape)
    in_axes = spec.order[batch_axes : batch_axes + _num_in_axes(spec)]
    contracted = [kernel.axes[a] for a in contracting[at]]
    if sorted(contracted) != sorted(in_axes) or batching[at] or kernel.index in found.inputs:
        return  # not in the role that the dimension numbers give it, or seen before
    if wanted.side == "in":
        # Contracted axes in the order in which the kernel flattens them.
        order = [contracting[1 - at][contracted.index(a)] for a in in_axes]
        free = [a for a in range(activation.value.ndim) if a not in order]
        x = jnp.transpose(activation.value, (*free, *order))
        x = x.reshape(*x.shape[: len(free)], -1)
        key: Any = (activation.identity, tuple(order))
    else:
        num_free = activation.value.ndim - len(contracting[1 - at])
        x = product if at == 1 else jnp.moveaxis(product, tuple(range(-num_free, 0)), tuple(range(num_free)))
        x = x.reshape(*x.shape[:num_free], -1)
        key = (kernel.index, "out")
    if key not in found.moments:
        found.moments[key] = outer_sum(x, _mask(x.shape[:-1], wanted.masks))
    found.inputs[kernel.index] = key


def _num_in_axes(spec: MatrixSpec) -> int:
    size, count = 1, 0
    for a in spec.order[len(spec.batch_shape) :]:
        if size == spec.matrix_shape[0] and count:
            break
        size, count = size * spec.shape[a], count + 1
    return count


def _mask(positions: tuple[int, ...], masks: Mapping[tuple[int, ...], jax.Array]) -> jax.Array | None:
    """The mask of activations with these leading axes: of their shape, of a prefix of it, or of their number."""
    for shape, mask in masks.items():
        if positions[: len(shape)] == shape:
            return jnp.broadcast_to(mask.reshape(*shape, *(1,) * (len(positions) - len(shape))), positions)
        if len(positions) == 1 and positions[0] == mask.size:
            return mask.reshape(-1)
    return None


def _scan(eqn: Any, operands: list[Tagged], wanted: Wanted, found: Found) -> list[Tagged]:
    """A scan whose body also returns the moments that it finds, stacked over its steps."""
    body, num_consts, num_carry = eqn.params["jaxpr"], eqn.params["num_consts"], eqn.params["num_carry"]
    consts, operands = operands[:num_consts], operands[num_consts:]
    carry, xs = operands[:num_carry], operands[num_carry:]

    def inner_tags(carry_values: Any, xs_values: Any) -> list[Tagged]:
        # Constants keep their identity: what all steps share is one input, not one a step.
        tags = [Tagged(c.value, c.kernel, c.identity) for c in consts]
        tags += [Tagged(v, None, object()) for v in carry_values]
        for operand, value in zip(xs, xs_values, strict=True):
            kernel = operand.kernel
            tags.append(Tagged(value, None if kernel is None else Kernel(kernel.index, kernel.axes[1:]), object()))
        return tags

    shared = {c.identity for c in consts}
    layout: list[tuple[int, Any]] = []
    constant: dict[Any, Any] = {}

    def step(carry_values: Any, xs_values: Any) -> tuple[Any, Any]:
        inside = Found(dict(found.inputs), {k: m for k, m in found.moments.items() if k[0] in shared})
        before = set(inside.moments)
        tags = _evaluate(body.jaxpr, body.consts, inner_tags(carry_values, xs_values), wanted, inside)
        results = [tag.value for tag in tags]
        fresh = {i: key for i, key in inside.inputs.items() if i not in found.inputs}
        layout[:] = list(fresh.items())
        constant.clear()
        constant.update({key: key[0] in shared for key in fresh.values()})
        keys = list(dict.fromkeys(fresh.values()))
        moments = {str(n): inside.moments[key] for n, key in enumerate(keys) if key not in before}
        return results[:num_carry], (results[num_carry:], moments)

    carried, (ys, stacked) = jax.lax.scan(
        step,
        [c.value for c in carry],
        [x.value for x in xs],
        length=eqn.params["length"],
        reverse=eqn.params["reverse"],
    )
    stacked_kernels = {x.kernel.index for x in xs if x.kernel is not None}
    keys = list(dict.fromkeys(key for _, key in layout))
    outer: dict[Any, Any] = {}
    for n, key in enumerate(keys):
        users = [i for i, k in layout if k == key]
        if key in found.moments:
            outer[key] = key
            continue
        moment = stacked[str(n)]
        if constant[key]:
            # The same in every step: one of them, and its identity is that of the constant outside.
            outer[key], moment = key, jax.tree.map(lambda m: m[0], moment)
        elif all(i in stacked_kernels for i in users):
            outer[key] = (object(), "layers")
        else:
            # One kernel used in all steps: the sum over them.
            outer[key], moment = (object(), "steps"), jax.tree.map(lambda m: jnp.sum(m, axis=0), moment)
        found.moments[outer[key]] = moment
    for i, key in layout:
        found.inputs[i] = outer[key]
    return [Tagged(v, None, object()) for v in (*carried, *ys)]
