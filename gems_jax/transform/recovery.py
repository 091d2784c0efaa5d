"""What of a gradient lies outside the shared basis, added to the update at the scale of what lies in it (Fira)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gems_jax.linalg.orthonormal import matmul
from gems_jax.linalg.sizes import squares, to_one
from gems_jax.transform.active_null_space import ActiveNullSpace
from gems_jax.transform.branches import BranchState, Steps
from gems_jax.transform.group_gradients import GroupGradients
from gems_jax.transform.plan import Group

# Most growth of its norm from one step to the next, and what keeps the scale of a column of zeros finite: both of the
# paper's code.
GROWTH, EPSILON = 1.01, 1e-8


class Recovered(NamedTuple):
    """What is added to a group's updates before ``scale``, and its norms, for the limit in the next step.

    Attributes:
      update: ``[k, p, q]``.
      norms: ``[k]``; 0 before the first.
    """

    update: jax.Array
    norms: jax.Array


def recover(
    group: Group,
    gradients: GroupGradients,
    branch: BranchState,
    steps: Steps,
    active: ActiveNullSpace,
    previous: jax.Array,
) -> Recovered:
    """``S = N (G - U U^T G) diag(s)``, ``s_i = |X_i| / (|L_i| + 1e-8)`` of the columns of ``X`` and ``L = U^T G``.

    Where its norm has grown by more than 1.01 since the former step, ``S <- S 1.01 |S_former| / |S|`` (Fira: Chen et
    al., arXiv 2410.01623, equations 6 and 7). ``G`` is the shared gradient, ``U`` and ``X`` are the shared branch's
    basis and low-rank update. ``N`` comes last, so that neither rounding nor the scaling of columns, where the null
    space is on the other side than the bases, takes ``S`` out of it.

    Args:
      group: equal kernels.
      gradients: of the group, whole.
      branch: with the bases in force.
      steps: of the group.
      active: the null space in this step.
      previous: ``[k]`` the former norms.

    Returns:
      `Recovered`; where the shared branch took no step, zeros and the former norms.
    """
    gradient, basis = gradients.shared, branch.shared_basis
    if active.constraint == "gradient":  # as the branch itself has it
        gradient = active.project(group, gradient)
    low = matmul(basis.mT, gradient)
    rest = gradient - matmul(basis, low)
    # Squared near 1; a column's size is then that of the gradient as it came.
    power = to_one(gradients.peaks[0])[:, None, None]
    length = _columns(low * power) / power
    rest = rest * (_columns(steps.shared) / (length + EPSILON))
    if active.constraint == "update":
        rest = active.project(group, rest)
    size = jnp.sqrt(squares(rest, 2))
    most = jnp.where(previous > 0, GROWTH * previous, jnp.inf)
    moved = steps.active
    kept = jnp.minimum(size, most)
    factor = jnp.where(moved & (size > 0), kept / jnp.where(size > 0, size, 1), 0)
    update = jnp.where(moved[:, None, None], rest * factor[:, None, None].astype(rest.dtype), 0)
    return Recovered(update, jnp.where(moved, kept, previous))


def _columns(x: jax.Array) -> jax.Array:
    """Norms of columns, ``[k, r, q] -> [k, 1, q]``."""
    return jnp.sqrt(jnp.sum((x * jnp.conj(x)).real, axis=-2, keepdims=True))
