"""What the projected path does with each leaf, before anything is computed."""

from collections.abc import Callable
from typing import Any, NamedTuple

from gems_jax.leaf_path import named_leaves
from gems_jax.projected.served import find_served, shapes_of
from gems_jax.types import PyTree


class ProjectionRow(NamedTuple):
    """One leaf's treatment.

    Attributes:
      path, shape: of the leaf.
      treatment: ``"projected"``, ``"full"`` (a kernel whose gradient is formed) or ``"fallback"`` (no kernel).
      why: of a kernel that is not projected.
      kept: bytes that the backward pass keeps of its products' inputs, for all tasks; 0 where they are recomputed, and
        for other leaves, of which it is not known.
    """

    path: str
    shape: tuple[int, ...]
    treatment: str
    why: str
    kept: int


class ProjectionPlan(NamedTuple):
    """The treatment of all leaves; ``print`` it."""

    rows: tuple[ProjectionRow, ...]

    def __str__(self) -> str:
        width = max((len(row.path) for row in self.rows), default=0)
        lines = []
        for row in self.rows:
            kept = f"{row.kept:,} bytes kept" if row.treatment == "projected" else row.why
            lines.append(f"{row.path:<{width}}  {list(row.shape)!s:<18} {row.treatment:<9}  {kept}".rstrip())
        return "\n".join(lines)


def projection_plan(
    loss_fn: Callable[[PyTree, PyTree], Any], tx: Any, params: PyTree, task_batch: PyTree
) -> ProjectionPlan:
    """The treatment of each leaf by `projected_task_grads`: projected, or in full and why (METHOD.md, section 11).

    Args:
      loss_fn, tx: as for `projected_task_grads`.
      params: parameters, or their shapes.
      task_batch: leaves ``[T, B, ...]``, or their shapes.

    Returns:
      A `ProjectionPlan`; nothing is computed.

    Raises:
      ValueError: as `projected_task_grads`.

    Example:
      >>> import jax.numpy as jnp
      >>> from gems_jax import gems
      >>> params = {"kernel": jnp.ones((8, 4)), "squared": {"kernel": jnp.ones((4, 4))}, "bias": jnp.zeros(4)}
      >>> loss = lambda p, x: jnp.mean((x @ p["kernel"] + p["bias"]) @ (p["squared"]["kernel"] ** 2))
      >>> print(projection_plan(loss, gems(1e-2, num_tasks=2, rank=2), params, jnp.ones((2, 16, 8))))
      bias            [4]                fallback
      kernel          [8, 4]             projected  ... bytes kept
      squared/kernel  [4, 4]             full       it goes into integer_pow
    """
    served = find_served(loss_fn, tx, None, params, task_batch)
    projected = {k.path for k in served.kernels}
    rows = []
    for path, leaf in named_leaves(shapes_of(params)):
        why = served.refused.get(path, "")
        if path in projected:
            rows.append(ProjectionRow(path, tuple(leaf.shape), "projected", "", served.kept[path]))
        else:
            rows.append(ProjectionRow(path, tuple(leaf.shape), "full" if why else "fallback", why, 0))
    return ProjectionPlan(tuple(rows))
