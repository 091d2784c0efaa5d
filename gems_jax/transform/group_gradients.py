"""The shared and the tasks' gradients of a group of kernels, and their sizes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gems_jax.linalg.sizes import Size, largest, largest_of_each, size_of
from gems_jax.linalg.stacks import as_they_lie
from gems_jax.task_grads import weighted_sum
from gems_jax.transform.diagnostics import GradientDiagnostics


class GroupGradients(NamedTuple):
    """Gradients of a group, projected axis first, in the working dtype.

    Attributes:
      shared: ``[k, p, q]`` ``G_s``; of a `LowRankGradient` its products with the shared basis, ``[k, r, q]``.
      task: ``[T, k, p, q]``, or ``None`` where there are no task branches in this step.
      peaks: bounds of their largest entries, ``[k]`` and ``[T, k]``.
      sizes: norms, ``[k]`` and ``[T, k]``; of a `LowRankGradient` those of the whole.
    """

    shared: jax.Array
    task: jax.Array | None
    peaks: tuple[jax.Array, jax.Array | None]
    sizes: tuple[Size, Size | None]

    def energy(self, powers: jax.Array) -> jax.Array:
        """Squared norms of the gradients times ``powers``, ``[1 + T]``."""
        # By way of each kernel's, which are needed elsewhere too: squared once, and not kept.
        shared, task = self.sizes
        powers = powers.astype(shared.power.dtype)
        of_shared = jnp.sum(shared.squares * (powers[0] / shared.power) ** 2)
        if task is None:
            return jnp.concatenate([of_shared[None], jnp.zeros_like(powers[1:])])
        of_tasks = jnp.sum(task.squares * (powers[1:, None] / task.power) ** 2, axis=-1)
        return jnp.concatenate([of_shared[None], of_tasks])


def group_gradients(
    gradient: jax.Array,
    rest: jax.Array | None,
    diagnosed: GradientDiagnostics,
    shared: jax.Array | None = None,
) -> GroupGradients:
    """Merges a group's gradients.

    Args:
      gradient: ``[T, k, p, q]``, or ``[1, k, p, q]`` where already merged; of a `LowRankGradient` ``[T, k, r, q]``.
      rest: ``[T, k, z, q]`` of a `LowRankGradient`, else ``None``.
      diagnosed: of the step, for the tasks' weights.
      shared: ``[k, p, q]`` the caller's own ``G_s``, or ``None``.
    """
    peaks = largest_of_each(gradient)
    if rest is not None:
        peaks = jnp.maximum(peaks, largest_of_each(rest))
    if shared is None:
        shared = weighted_sum(gradient, diagnosed.weights)
        is_there = diagnosed.weights[:, None] > 0 if len(peaks) > 1 else True
        peak = jnp.max(jnp.where(is_there, peaks, 0), axis=0)
    else:
        peak = largest(shared, 2)
    there = diagnosed.present.shared
    shared = jnp.where(there, shared, 0)
    if len(gradient) != len(diagnosed.weights):
        return GroupGradients(shared, None, (peak, None), (size_of([shared], peak), None))
    outside = [] if rest is None else [jnp.where(there, weighted_sum(rest, diagnosed.weights), 0)]
    parts = [gradient] if rest is None else [gradient, rest]
    of_tasks = as_they_lie(size_of, parts, peaks)
    return GroupGradients(shared, gradient, (peak, peaks), (size_of([shared, *outside], peak), of_tasks))
