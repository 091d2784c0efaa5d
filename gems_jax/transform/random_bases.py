"""Bases drawn at random inside the null space, without any decomposition: a rival to those of gradients."""

import math
import zlib

import jax
import jax.numpy as jnp

from gems_jax.linalg.orthonormal import orthonormal_inside
from gems_jax.linalg.projection import Projector
from gems_jax.linalg.stacks import whole_columns
from gems_jax.linalg.subspace import align, canonical_signs, project_inside, room_for
from gems_jax.transform.plan import Group
from gems_jax.transform.refresh import Bases, Masks, NewBases, Refresh, has_basis, where_leading


def member_ids(group: Group) -> tuple[int, ...]:
    """A number for each matrix of a group, of its kernel's path and its place in the stack: what it draws by."""
    return tuple(
        zlib.crc32(f"{kernel.path} {i}".encode()) for kernel in group for i in range(math.prod(kernel.batch_shape))
    )


def draw_bases(
    old: Bases, ids: jax.Array, do: jax.Array, projector: Projector, masks: Masks, refresh: Refresh
) -> NewBases:
    """Bases of the branches in ``do``, uniform among all of their rank inside the null space.

    ``U = orth(N Z)``, ``Z`` normal, as in GrassWalk's ablation (arXiv 2510.01878). The key follows from the seed, the
    step, the kernel's path and the branch alone, so that a run that goes on draws what it would have drawn, on any
    mesh.

    Args:
      old: bases in force.
      ids: ``[k]`` uint32, of `member_ids`.
      do: ``[1 + T, k]`` bool (``[1, k]`` without task branches).
      projector: the null space, factor ``[k, p, c]`` or none.
      masks: of the columns there is room for.
      refresh: of the step.

    Returns:
      Shared and task bases, and which were replaced: those in ``do``.
    """
    step_key = jax.random.fold_in(refresh.key, refresh.step)

    def drawn(
        previous: jax.Array, branch: jax.Array | int, exclude: jax.Array | None, columns: jax.Array | None
    ) -> jax.Array:
        rank, dtype = previous.shape[-1], previous.dtype
        shape = (previous.shape[-2], 2 * rank)  # half of them to complete what depends on others

        def noise(member: jax.Array) -> jax.Array:
            key = jax.random.fold_in(jax.random.fold_in(step_key, member), branch)
            return jax.random.normal(key, shape, dtype)

        def project(x: jax.Array) -> jax.Array:
            return project_inside(x, projector.project_once, exclude)

        there = room_for(columns, rank, dtype)
        block = whole_columns(project(jax.vmap(noise)(ids) * jnp.concatenate([there, there], axis=-1)))
        basis = orthonormal_inside(block[..., :rank], project, block[..., rank:])
        if refresh.settings.signs == "align":
            aligned = align(basis, previous)
            return jnp.where(has_basis(previous)[..., None, None], aligned, canonical_signs(basis))
        return canonical_signs(basis)

    shared = where_leading(do[0], drawn(old[0], 0, None, masks[0]), old[0])
    if old[1] is None:
        return shared, None, do
    exclude = shared if refresh.settings.complementary else None
    own = [drawn(previous, 1 + t, exclude, masks[1]) for t, previous in enumerate(old[1])]
    return shared, where_leading(do[1:], jnp.stack(own), old[1]), do
