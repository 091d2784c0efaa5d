"""What a batch of several tasks must be: leaves that begin with the axis of the tasks; others are named."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from gems_jax.leaf_path import named_leaves
from gems_jax.types import PyTree

# Leaves that an error of the loss lists.
_LISTED = 8
_REMEDY = (
    "stack the tasks' batches (jnp.stack), and repeat what they share (jnp.stack([x] * T)) or leave it out of the batch"
)


def check_leaves(task_batch: PyTree) -> None:
    """Checks that a batch has leaves, and that all of them are arrays or numbers.

    Raises:
      ValueError: there are none, or one is something else (names the leaf).
    """
    leaves = named_leaves(task_batch)
    if not leaves:
        raise ValueError("the task batch has no leaves; expected arrays [T, B, ...], the tasks' batches stacked")
    for path, leaf in leaves:
        if not _is_numeric(leaf):
            what = getattr(leaf, "dtype", None) or type(leaf).__name__
            raise ValueError(
                f"batch leaf {path!r} is of type {what}, expected an array of numbers [T, ...]: leave it out of the "
                "batch"
            )


def check_tasks(task_batch: PyTree, num_tasks: int | None = None) -> int:
    """Checks that all leaves of a batch begin with the same axis of tasks; returns their number.

    Args:
      task_batch: arrays, numbers or shapes.
      num_tasks: how many there must be; ``None``: any number from 1 on.

    Raises:
      ValueError: as `check_leaves`; a leaf has no such axis, or another number of tasks (names the leaf).

    Example:
      >>> check_tasks({"x": jnp.ones((2, 8, 4)), "scale": jnp.ones(2)})
      2
    """
    check_leaves(task_batch)
    sizes: dict[int, tuple[str, list[int]]] = {}
    for path, leaf in named_leaves(task_batch):
        shape = list(jnp.shape(leaf))
        if not shape or shape[0] != (num_tasks or shape[0] or None):
            count = "at least one" if num_tasks is None else f"{num_tasks} of them (num_tasks of gems)"
            raise ValueError(
                f"batch leaf {path!r} has shape {shape}, expected [{num_tasks or 'T'}, ...]: its leading axis is the "
                f"task, {count}; {_REMEDY}"
            )
        sizes.setdefault(shape[0], (path, shape))
    if len(sizes) > 1:
        shown = ", ".join(f"{size} in {path!r} of shape {shape}" for size, (path, shape) in sizes.items())
        raise ValueError(
            f"batch leaves disagree on the number of tasks: {shown}; expected [T, ...] with one T, the leading axis is "
            f"the task: {_REMEDY}"
        )
    return next(iter(sizes))


@contextlib.contextmanager
def telling_leaves(task_batch: PyTree) -> Iterator[None]:
    """Around a loss that is run on one task's batch: where it fails, the error tells what leaves it was given.

    Args:
      task_batch: leaves ``[T, ...]``.

    Raises:
      ValueError: instead of the loss's ``TypeError``, ``ValueError`` or ``IndexError``, where a leaf of the batch is
        ``[T]``, so that the loss got a scalar; other errors get a note.
    """
    try:
        yield
    except (TypeError, ValueError, IndexError) as error:
        shapes = {path: list(jnp.shape(leaf)) for path, leaf in named_leaves(task_batch)}
        flat = [path for path, shape in shapes.items() if len(shape) == 1]
        if flat:
            raise ValueError(
                f"loss_fn fails on the batch of one task ({type(error).__name__}: {error}). Batch leaf {flat[0]!r} has "
                f"shape {shapes[flat[0]]}, so a task's part of it is a scalar; if loss_fn takes rows of it, expected "
                "[T, B, ...]: add the axis of the tasks in front (x[None] of one task, jnp.stack of several)"
            ) from error
        listed = ", ".join(f"{path!r} {shape[1:]}" for path, shape in list(shapes.items())[:_LISTED])
        more = ", ..." if len(shapes) > _LISTED else ""
        error.add_note(f"loss_fn was run on the batch of one task, whose leaves are {listed}{more}")
        raise


def check_per_task(name: str, value: Any, num_tasks: int) -> None:
    """Raises ``ValueError`` unless an argument of an update has the shape ``[T]``."""
    if jnp.shape(value) != (num_tasks,):
        raise ValueError(
            f"{name} has shape {list(jnp.shape(value))}, expected [{num_tasks}], one a task: task_value_and_grad gives "
            f"that of a batch whose leaves begin with the axis of the tasks, [{num_tasks}, B, ...]"
        )


def _is_numeric(leaf: Any) -> bool:
    dtype = getattr(leaf, "dtype", None)
    if dtype is None:
        return isinstance(leaf, bool | int | float | complex)
    try:
        kinds = (jnp.number, jnp.bool_, jax.dtypes.extended)
        return any(jnp.issubdtype(dtype, kind) for kind in kinds)
    except TypeError:  # another library's
        return False
