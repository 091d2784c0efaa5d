"""Bases of a group as passes of the model take them, kept in one place from pass to pass."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gems_jax.linalg.stacks import exchanged
from gems_jax.transform.refresh import Bases
from gems_jax.types import PyTree

# Random columns that norms and inner products of whole gradients are estimated with.
SKETCH = 8


class PackedBases(NamedTuple):
    """A group's bases in the order of a scan over its layers, so that no pass arranges them anew.

    Attributes:
      wide: ``[k, p, r + SKETCH]``, the shared basis and the sketch's columns.
      tasks: ``[k, T p, r_t]``, the tasks' bases below each other, or ``None``: with an axis of tasks the compiler may
        leave them in the order that they came in, and copy them in each pass.
    """

    wide: jax.Array
    tasks: jax.Array | None

    @property
    def task(self) -> jax.Array | None:
        """``[T, k, p, r_t]``."""
        if self.tasks is None:
            return None
        stack, inputs, _ = self.wide.shape
        of_layers: jax.Array = exchanged(self.tasks.reshape(stack, -1, inputs, self.tasks.shape[-1]))
        return of_layers

    @property
    def bases(self) -> Bases:
        """Shared ``[k, p, r]``, task ``[T, k, p, r_t]``."""
        return self.wide[..., :-SKETCH], self.task

    @property
    def with_sketch(self) -> Bases:
        """The same with the sketch's columns behind the shared basis."""
        return self.wide, self.task


def packed(bases: Bases, sketch: jax.Array) -> PackedBases:
    """Of bases and ``[k, p, SKETCH]``."""
    shared, task = bases
    wide = jnp.concatenate([shared, sketch], axis=-1)
    return PackedBases(wide, None if task is None else exchanged(task).reshape(len(wide), -1, task.shape[-1]))


def where_they_lie(condition: jax.Array, compute: Callable[[PyTree], PyTree], old: PyTree) -> PyTree:
    """``compute(old)`` or ``old``, in the memory of ``old``: a conditional would make a copy of either.

    Example:
      >>> float(where_they_lie(jnp.bool_(True), lambda x: 2 * x, jnp.float32(3)))
      6.0
    """

    def turn(now: tuple[jax.Array, PyTree]) -> tuple[jax.Array, PyTree]:
        return jnp.zeros_like(now[0]), compute(now[1])

    return jax.lax.while_loop(lambda now: now[0], turn, (condition, old))[1]
