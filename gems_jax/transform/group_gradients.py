"""The shared and the tasks' gradients of a group of kernels, and their sizes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gems_jax.linalg.scales import Size, largest, size_of
from gems_jax.task_grads import weighted_sum
from gems_jax.transform.diagnostics import GradientDiagnostics


class GroupGradients(NamedTuple):
    """Gradients of a group, projected axis first, in the working dtype, or what stands for them.

    Attributes:
      shared: ``[k, p, q]`` ``G_s``.
      task: ``[T, k, p, q]``, or ``None`` where there are no task branches in this step.
      peaks: bounds of their largest entries, ``[k]`` and ``[T, k]``.
    """

    shared: jax.Array
    task: jax.Array | None
    peaks: tuple[jax.Array, jax.Array | None]

    def sizes(self) -> tuple[Size, Size | None]:
        """Norms, ``[k]`` and ``[T, k]``."""
        peak, task_peak = self.peaks
        task = None if self.task is None or task_peak is None else size_of(self.task, task_peak)
        return size_of(self.shared, peak), task

    def energy(self, scales: jax.Array) -> jax.Array:
        """Squared norms of the gradients times ``scales``, ``[1 + T]``."""
        # By way of each kernel's, which are needed elsewhere too: squared once, and not kept.
        shared, task = self.sizes()
        scales = scales.astype(shared.scale.dtype)
        of_shared = jnp.sum(shared.squares * (scales[0] / shared.scale) ** 2)
        if task is None:
            return jnp.concatenate([of_shared[None], jnp.zeros_like(scales[1:])])
        of_tasks = jnp.sum(task.squares * (scales[1:, None] / task.scale) ** 2, axis=-1)
        return jnp.concatenate([of_shared[None], of_tasks])


def group_gradients(
    gradient: jax.Array, diagnosed: GradientDiagnostics, shared: jax.Array | None = None
) -> GroupGradients:
    """Merges a group's gradients.

    Args:
      gradient: ``[T, k, p, q]``, or ``[1, k, p, q]`` where already merged.
      diagnosed: of the step, for the tasks' weights.
      shared: ``[k, p, q]`` the caller's own ``G_s``, or ``None``.
    """
    peaks = largest(gradient, 2)
    if shared is None:
        shared = weighted_sum(gradient, diagnosed.weights)
        is_there = diagnosed.weights[:, None] > 0 if len(peaks) > 1 else True
        peak = jnp.max(jnp.where(is_there, peaks, 0), axis=0)
    else:
        peak = largest(shared, 2)
    shared = jnp.where(diagnosed.present.shared, shared, 0)
    if len(gradient) != len(diagnosed.weights):
        return GroupGradients(shared, None, (peak, None))
    return GroupGradients(shared, gradient, (peak, peaks))
