"""A product with a kernel whose derivative is the gradient's products with bases, never the gradient."""

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gems_jax.projected.kernel_notes import Notes
from gems_jax.projected.kernel_view import Atom, Dim, Form, KernelView, Part, Refused


class _How(NamedTuple):
    """Of a product whose result is a cotangent: its dtype, and the precision of the program's own product."""

    dtype: str
    precision: Any

    def product(self, a: jax.Array, b: jax.Array) -> jax.Array:
        wide = jnp.promote_types(jnp.result_type(a, b), self.dtype)
        product = jnp.matmul(a, b, precision=self.precision, preferred_element_type=wide)
        # A real kernel times complex numbers.
        is_real = not jnp.issubdtype(self.dtype, jnp.complexfloating)
        return (product.real if is_real else product).astype(self.dtype)


def kernel_product(
    view: KernelView, x: jax.Array, bind: Any, params: Mapping[str, Any], is_first: bool, notes: Notes
) -> jax.Array:
    """``y = x W`` (or ``x W^T``) as the program has it; the cotangent of each carrier is ``U^T G`` (METHOD.md 11).

    ``G = x^T dy``: with a basis of the contracted side ``U^T G = (x U)^T dy``, of the other side ``V^T G^T =
    (dy V)^T x``. The backward pass needs ``x U``, not ``x``, in the first case.

    Args:
      view: of the kernel.
      x: the activations.
      bind: ``bind(x, w)``, the program's own product.
      params: of its ``dot_general``.
      is_first: whether the kernel is the first operand.
      notes: told what the backward pass needs.

    Raises:
      Refused: the product contracts something else than one side of the kernel's matrix, or adds up a stack.
    """
    (first, second), (first_batch, second_batch) = params["dimension_numbers"]
    contracted, of_x = (first, second) if is_first else (second, first)
    batch, batch_of_x = (first_batch, second_batch) if is_first else (second_batch, first_batch)
    form = view.form
    free = [i for i in range(len(form.dims)) if i not in (*contracted, *batch)]
    # Matrices of the stack that the same activations go into.
    beside = [i for i in free if form.dims[i] and set(form.dims[i]) <= set(form.stack)]
    columns = [i for i in free if i not in beside]
    if set(_atoms(form, [*batch, *beside])) != set(form.stack):
        raise Refused("a product does not keep the matrices of its stack apart")
    side = form.side_of(_atoms(form, contracted))
    other = form.side_of(_atoms(form, columns))
    if side is None or other is None or side == other:
        raise Refused("a product contracts other axes of it than its inputs or its outputs")

    y = bind(x, jax.lax.stop_gradient(view.value))
    free_of_x = [i for i in range(x.ndim) if i not in (*of_x, *batch_of_x)]
    rows, width = (math.prod(x.shape[i] for i in axes) for axes in (free_of_x, of_x))
    inputs = jax.lax.stop_gradient(x).transpose(*batch_of_x, *free_of_x, *of_x)
    inputs = inputs.reshape(*(x.shape[i] for i in batch_of_x), *(1 for _ in beside), rows, width)
    # The program's result has the batch first, then the first operand's free axes, then the second's.
    before_x, before_kernel = (len(free), 0) if is_first else (0, len(free_of_x))
    row_axes = [len(batch) + before_x + n for n in range(len(free_of_x))]
    axis = {i: len(batch) + before_kernel + n for n, i in enumerate(free)}
    order = [*range(len(batch)), *(axis[i] for i in beside), *row_axes, *(axis[i] for i in columns)]
    shape = [y.shape[i] for i in order]
    lead = shape[: len(batch) + len(beside)]
    output = y.transpose(*order).reshape(*lead, rows, math.prod(shape[y.ndim - len(columns) :]))
    # The activations themselves are needed once, whatever the number of bases of the other side.
    whole = 0 if all(part.spans == side for part in view.parts) else inputs.size * inputs.dtype.itemsize
    notes.keep(form.path, whole)
    precision = _precision(params["precision"])
    for part in view.parts:
        spanned, rest = (contracted, columns) if part.spans == side else (columns, contracted)
        basis = _arranged(part.basis, form, part, [*batch, *beside], spanned, is_basis=True)
        basis = basis.astype(_dtype_beside(x, basis))
        carrier = _arranged(part.carrier, form, part, [*batch, *beside], rest, is_basis=False)
        how = _How(carrier.dtype.name, precision)
        if part.spans == side:
            inside = jnp.matmul(inputs, basis, precision=precision)
            notes.keep(form.path, inside.size * inside.dtype.itemsize)
            output = _carry_inputs(how, output, inside, carrier)
        else:
            output = _carry_outputs(how, output, inputs, basis, carrier)
    y = output.reshape(shape)
    return y.transpose(*(order.index(i) for i in range(y.ndim)))


def _precision(precision: Any) -> jax.lax.Precision | None:
    """The higher one of the program's operands; ``None`` for algorithms, which are of its own dtypes alone."""
    both = precision if isinstance(precision, tuple) else (precision,)
    levels = [p for p in both if isinstance(p, jax.lax.Precision)]
    return max(levels, key=list(jax.lax.Precision).index, default=None)


def _dtype_beside(x: jax.Array, basis: jax.Array) -> Any:
    """That of the activations; the basis' own where theirs is too narrow for one: integers, eight bits."""
    wide = jnp.issubdtype(x.dtype, jnp.inexact) and x.dtype.itemsize > 1
    return x.dtype if wide else basis.dtype


def _atoms(form: Form, dims: Sequence[int]) -> list[Atom]:
    return list(itertools.chain(*(form.dims[i] for i in dims)))


def _arranged(
    x: jax.Array, form: Form, part: Part, batch: Sequence[int], dims: Sequence[int], is_basis: bool
) -> jax.Array:
    """A basis ``[*stack, d, r]`` or carrier ``[*stack, r, e]`` in the order of the product's axes."""
    side = part.spans if is_basis else ("out" if part.spans == "in" else "in")
    matrix, stack = form.atoms_of(side), list(form.stack)
    sizes, rank = [atom.size for atom in matrix], x.shape[-1 if is_basis else -2]
    lead = [atom.size for atom in stack]
    x = x.reshape(*lead, *sizes, rank) if is_basis else x.reshape(*lead, rank, *sizes)
    labels: list[Any] = [*stack, *matrix, None] if is_basis else [*stack, None, *matrix]
    wanted_lead, wanted = _atoms(form, batch), _atoms(form, dims)
    wanted_order: list[Any] = [*wanted_lead, *wanted, None] if is_basis else [*wanted_lead, None, *wanted]
    x = x.transpose(*(labels.index(label) for label in wanted_order))
    shape = [_size(form.dims[i]) for i in batch]
    return x.reshape(*shape, -1, rank) if is_basis else x.reshape(*shape, rank, -1)


def _size(dim: Dim) -> int:
    return math.prod(atom.size for atom in dim)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _carry_inputs(how: _How, output: jax.Array, inside: jax.Array, carrier: jax.Array) -> jax.Array:
    """``output [*, N, F]``; the cotangent of ``carrier [*, r, F]`` is ``inside^T d_output``, ``inside [*, N, r]``."""
    return output


def _carry_inputs_forward(how: _How, output: jax.Array, inside: jax.Array, carrier: jax.Array) -> Any:
    return output, inside


def _carry_inputs_backward(how: _How, inside: jax.Array, cotangent: jax.Array) -> Any:
    return cotangent, None, how.product(inside.mT, cotangent)


_carry_inputs.defvjp(_carry_inputs_forward, _carry_inputs_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _carry_outputs(how: _How, output: jax.Array, inputs: jax.Array, basis: jax.Array, carrier: jax.Array) -> jax.Array:
    """``output [*, N, F]``; the cotangent of ``carrier [*, r, C]`` is ``(d_output basis)^T inputs``."""
    return output


def _carry_outputs_forward(
    how: _How, output: jax.Array, inputs: jax.Array, basis: jax.Array, carrier: jax.Array
) -> Any:
    return output, (inputs, basis)


def _carry_outputs_backward(how: _How, kept: tuple[jax.Array, jax.Array], cotangent: jax.Array) -> Any:
    inputs, basis = kept
    inside = jnp.matmul(cotangent, basis.astype(cotangent.dtype), precision=how.precision)
    return cotangent, None, None, how.product(inside.mT, inputs)


_carry_outputs.defvjp(_carry_outputs_forward, _carry_outputs_backward)
