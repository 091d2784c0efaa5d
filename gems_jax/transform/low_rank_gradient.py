"""The gradient of one kernel as the transform needs it, where the whole was never formed."""

from typing import Any, NamedTuple

import jax

from gems_jax.types import PyTree


class LowRankGradient(NamedTuple):
    """A kernel's gradient ``G_t`` of each task by its products with bases, see `gems_jax.projected_task_grads`.

    It stands in a tree of gradients in the place of an array ``[T, *shape]``. Shapes are those of the kernel's state:
    ``batch`` is ``[1]`` for a kernel that is not stacked, ``p`` the axis its bases span and ``q`` the other.

    Attributes:
      shared: ``[T, *batch, r, q]`` ``U_s^T G_t``.
      task: ``[T, *batch, r_t, q]`` ``U_t^T G_t``, or ``None`` where there are no task branches.
      rest: ``[T, *batch, z, q]`` ``Z^T (1 - U_s U_s^T) G_t`` with ``E[Z Z^T] = 1``: with ``shared`` it gives norms and
        inner products of the tasks' gradients without bias.
      shared_basis: ``[*batch, p, r]`` the bases that these are products with, new ones where refreshed in this step.
      task_basis: ``[T, *batch, p, r_t]`` or ``None``.
      done, failed, pending: ``[1 + T, *batch]`` bool, bases that were replaced, that should have been, and that wait.
    """

    shared: jax.Array
    task: jax.Array | None
    rest: jax.Array
    shared_basis: jax.Array
    task_basis: jax.Array | None
    done: jax.Array
    failed: jax.Array
    pending: jax.Array

    @property
    def dtype(self) -> Any:
        return self.shared.dtype

    def standing_in(self) -> list[jax.Array]:
        """Arrays ``[T, ...]`` whose inner products add up to those of the whole gradients, estimated without bias."""
        return [self.shared, self.rest]

    def products(self) -> list[jax.Array]:
        """The arrays ``[T, ...]`` that are linear in the gradients."""
        return [x for x in (self.shared, self.task, self.rest) if x is not None]

    def scaled(self, factors: jax.Array) -> "LowRankGradient":
        """With each task's gradient times its factor, ``[T]`` or ``[1]``."""

        def times(x: jax.Array) -> jax.Array:
            return x * factors.astype(x.dtype).reshape(-1, *(1,) * (x.ndim - 1))

        task = None if self.task is None else times(self.task)
        return self._replace(shared=times(self.shared), task=task, rest=times(self.rest))


def is_low_rank(x: Any) -> bool:
    """Whether a node of a tree of gradients is a `LowRankGradient`."""
    return isinstance(x, LowRankGradient)


def whole_shapes(grads: PyTree, params: PyTree) -> PyTree:
    """The tree of gradients with shapes ``[T, *shape]`` in the place of each `LowRankGradient`: as whole ones have."""
    shapes = iter([tuple(p.shape) for p in jax.tree.leaves(params)])

    def whole(x: Any) -> Any:
        shape = next(shapes, ())
        return jax.ShapeDtypeStruct((len(x.shared), *shape), x.dtype) if is_low_rank(x) else x

    return jax.tree.map(whole, grads, is_leaf=is_low_rank)
