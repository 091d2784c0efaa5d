"""A product with a kernel whose derivative is the gradient's products with bases, never the gradient."""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gems_jax.projected.kernel_notes import Notes
from gems_jax.projected.kernel_view import Atom, Dim, Form, KernelView, Part, Refused

Numbers = tuple[tuple[Sequence[int], Sequence[int]], tuple[Sequence[int], Sequence[int]]]


def kernel_product(
    view: KernelView, x: jax.Array, bind: Any, numbers: Numbers, is_first: bool, notes: Notes
) -> jax.Array:
    """``y = x W`` (or ``x W^T``) as the program has it; the cotangent of each carrier is ``U^T G`` (METHOD.md 11).

    ``G = x^T dy``: with a basis of the contracted side ``U^T G = (x U)^T dy``, of the other side ``V^T G^T =
    (dy V)^T x``. The backward pass needs ``x U``, not ``x``, in the first case.

    Args:
      view: of the kernel.
      x: the activations.
      bind: ``bind(x, w)``, the program's own product.
      numbers: ``dot_general``'s dimension numbers of it.
      is_first: whether the kernel is the first operand.
      notes: told what the backward pass needs.

    Raises:
      Refused: the product contracts something else than one side of the kernel's matrix, or not all of its stack.
    """
    (first, second), (first_batch, second_batch) = numbers
    contracted, of_x = (first, second) if is_first else (second, first)
    batch, batch_of_x = (first_batch, second_batch) if is_first else (second_batch, first_batch)
    form = view.form
    free = [i for i in range(len(form.dims)) if i not in (*contracted, *batch)]
    side = form.side_of(_atoms(form, contracted))
    other = form.side_of(_atoms(form, free))
    if side is None or other is None or side == other:
        raise Refused("a product contracts other axes of it than its inputs or its outputs")
    if set(_atoms(form, batch)) != set(form.stack):
        raise Refused("a product takes several of its stack at once")

    y = bind(x, jax.lax.stop_gradient(view.value))
    free_of_x = [i for i in range(x.ndim) if i not in (*of_x, *batch_of_x)]
    lead = [x.shape[i] for i in batch_of_x]
    rows = math.prod(x.shape[i] for i in free_of_x)
    inputs = jax.lax.stop_gradient(x).transpose(*batch_of_x, *free_of_x, *of_x).reshape(*lead, rows, -1)
    # The program's result has the first operand's free axes first.
    order = list(range(y.ndim))
    if is_first:
        begin, middle = len(lead), len(lead) + len(free)
        order = [*order[:begin], *order[middle:], *order[begin:middle]]
    shape = [y.shape[i] for i in order]
    output = y.transpose(*order).reshape(*lead, rows, -1)
    # The activations themselves are needed once, whatever the number of bases of the other side.
    whole = 0 if all(part.spans == side for part in view.parts) else inputs.size * inputs.dtype.itemsize
    notes.keep(form.path, whole)
    for part in view.parts:
        spanned, rest = (contracted, free) if part.spans == side else (free, contracted)
        basis = _arranged(part.basis, form, part, batch, spanned, is_basis=True).astype(x.dtype)
        carrier = _arranged(part.carrier, form, part, batch, rest, is_basis=False)
        if part.spans == side:
            inside = jnp.matmul(inputs, basis)
            notes.keep(form.path, inside.size * inside.dtype.itemsize)
            output = _carry_inputs(carrier.dtype.name, output, inside, carrier)
        else:
            output = _carry_outputs(carrier.dtype.name, output, inputs, basis, carrier)
    y = output.reshape(shape)
    return y.transpose(*(order.index(i) for i in range(y.ndim)))


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
def _carry_inputs(dtype: str, output: jax.Array, inside: jax.Array, carrier: jax.Array) -> jax.Array:
    """``output [*, N, F]``; the cotangent of ``carrier [*, r, F]`` is ``inside^T d_output``, ``inside [*, N, r]``."""
    return output


def _carry_inputs_forward(dtype: str, output: jax.Array, inside: jax.Array, carrier: jax.Array) -> Any:
    return output, inside


def _carry_inputs_backward(dtype: str, inside: jax.Array, cotangent: jax.Array) -> Any:
    return cotangent, None, jnp.matmul(inside.mT, cotangent, preferred_element_type=jnp.dtype(dtype)).astype(dtype)


_carry_inputs.defvjp(_carry_inputs_forward, _carry_inputs_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _carry_outputs(dtype: str, output: jax.Array, inputs: jax.Array, basis: jax.Array, carrier: jax.Array) -> jax.Array:
    """``output [*, N, F]``; the cotangent of ``carrier [*, r, C]`` is ``(d_output basis)^T inputs``."""
    return output


def _carry_outputs_forward(
    dtype: str, output: jax.Array, inputs: jax.Array, basis: jax.Array, carrier: jax.Array
) -> Any:
    return output, (inputs, basis)


def _carry_outputs_backward(dtype: str, kept: tuple[jax.Array, jax.Array], cotangent: jax.Array) -> Any:
    inputs, basis = kept
    inside = jnp.matmul(cotangent, basis.astype(cotangent.dtype))
    return cotangent, None, None, jnp.matmul(inside.mT, inputs, preferred_element_type=jnp.dtype(dtype)).astype(dtype)


_carry_outputs.defvjp(_carry_outputs_forward, _carry_outputs_backward)
