"""Passes of the model: the tasks' losses, products of their gradients with bases, and the other leaves' gradients."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gems_jax.projected.kernel_notes import Notes
from gems_jax.projected.kernel_view import Part
from gems_jax.projected.served import LossProgram, run_loss, with_views
from gems_jax.transform.plan import KernelPlan
from gems_jax.transform.state import work_dtype
from gems_jax.types import PyTree

OTHER = {"in": "out", "out": "in"}


class Bases(NamedTuple):
    """What a kernel's gradients are multiplied with in a pass.

    Attributes:
      common: ``[*batch, d, r]`` the same for all tasks, or ``None``.
      own: ``[T, *batch, d, r_t]`` each task's own, or ``None``.
      across: whether they span the kernel's other axis than its bases do.
    """

    common: jax.Array | None
    own: jax.Array | None
    across: bool = False


class Products(NamedTuple):
    """Products of one kernel's gradients with `Bases`: ``[T, *batch, r, e]`` and ``[T, *batch, r_t, e]``."""

    common: jax.Array | None
    own: jax.Array | None


class Passed(NamedTuple):
    """What a pass returns.

    Attributes:
      losses: ``[T]``.
      aux: of the loss, with a leading task axis, or ``None``.
      products: of each served kernel, by leaf.
      grads: ``[T, *shape]`` of the leaves that are not served, by leaf.
    """

    losses: jax.Array
    aux: PyTree
    products: dict[int, Products]
    grads: dict[int, jax.Array]


def run_pass(
    program: LossProgram,
    kernels: Mapping[int, KernelPlan],
    leaves: list[jax.Array],
    task_batch: PyTree,
    bases: Mapping[int, Bases],
    has_aux: bool,
    spmd_axis_name: str | None,
) -> Passed:
    """Runs the loss of every task forward and back.

    Args:
      program: of the loss.
      kernels: that are served, by leaf.
      leaves: of the parameters.
      task_batch: leaves ``[T, B, ...]``.
      bases: by leaf.
      has_aux: whether the loss returns a pair.
      spmd_axis_name: mesh axis over which tasks lie.
    """
    rest = {i: x for i, x in enumerate(leaves) if i not in kernels}
    own = {i: b.own for i, b in bases.items()}
    carriers = {i: (_carrier(b.common, b, kernels[i]), _carrier(b.own, b, kernels[i])) for i, b in bases.items()}

    def loss(carriers: PyTree, rest: dict[int, jax.Array], own: PyTree, batch: PyTree) -> tuple[jax.Array, PyTree]:
        parts: dict[int, list[Part]] = {}
        for i, kernel in kernels.items():
            spans = OTHER[kernel.side] if bases[i].across else kernel.side
            pairs = zip((bases[i].common, own[i]), carriers[i], strict=True)
            parts[i] = [Part(_bare(x, kernel), carrier, spans) for x, carrier in pairs if x is not None]
        notes = Notes()
        args = with_views([rest.get(i, x) for i, x in enumerate(leaves)], kernels, parts)
        results = run_loss(program, [*args, *jax.tree.leaves(batch)], notes)
        if notes.refused:  # the search for them has found none
            raise AssertionError(f"kernels are served and used otherwise: {notes.refused}")
        result = jax.tree.unflatten(program.result, results)
        return result if has_aux else (result, None)

    gradient = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    mapped = jax.vmap(gradient, in_axes=(None, None, 0, 0), spmd_axis_name=spmd_axis_name)
    (losses, aux), (products, grads) = mapped(carriers, rest, own, task_batch)
    losses = losses.astype(jnp.promote_types(losses.dtype, jnp.float32))
    return Passed(losses, aux, {i: Products(*pair) for i, pair in products.items()}, grads)


def mean_over_parts(run: Callable[[PyTree], Passed], parts: PyTree, weights: jax.Array) -> Passed:
    """One pass after the other, over the parts of a batch that need too much memory together.

    ``sum_i w_ti X_ti`` of losses, products and gradients: all are linear in the gradients.

    Args:
      run: the pass of one part, leaves ``[T, B, ...]``.
      parts: leaves ``[T, A, B, ...]``.
      weights: ``[T, A]``, each task's sum is 1; a part of weight 0 adds nothing, whatever its gradient is.

    Returns:
      The means, in the dtypes that statistics have; ``aux`` with leading axes ``[T, A]``.
    """
    ahead = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), parts)

    def add(total: Passed, part: tuple[PyTree, jax.Array]) -> tuple[Passed, PyTree]:
        batch, weight = part
        passed = run(batch)

        def added(mean: jax.Array, x: jax.Array) -> jax.Array:
            w = weight.astype(mean.dtype).reshape(-1, *(1,) * (x.ndim - 1))
            return mean + jnp.where(w > 0, w * x.astype(mean.dtype), 0)

        return jax.tree.map(added, total, passed._replace(aux=None)), passed.aux

    shapes = jax.eval_shape(run, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), ahead))
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, work_dtype(x.dtype)), shapes._replace(aux=None))
    total, aux = jax.lax.scan(add, nothing, (ahead, weights.T))
    return total._replace(aux=jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), aux))


def _bare(basis: jax.Array, kernel: KernelPlan) -> jax.Array:
    """Without the stack of one of a kernel that is not stacked."""
    return basis.reshape(*kernel.spec.batch_shape, *basis.shape[-2:])


def _carrier(basis: jax.Array | None, bases: Bases, kernel: KernelPlan) -> jax.Array | None:
    """Zeros whose cotangent is the gradient's product with a basis."""
    if basis is None:
        return None
    size = kernel.kept if bases.across else kernel.other
    return jnp.zeros((*kernel.spec.batch_shape, basis.shape[-1], size), work_dtype(basis.dtype))
