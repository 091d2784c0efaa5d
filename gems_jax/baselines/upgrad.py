"""UPGrad: the mean of the tasks' gradients, each projected onto the directions that hurt no task."""

import jax
import jax.numpy as jnp
import optax

from gems_jax.baselines.simplex import to_boundary
from gems_jax.baselines.weighting import Tasks, cosines, share_of_present, weighted
from gems_jax.types import PyTree

# Keeps the quadratic problem strictly convex where gradients depend on each other, as opposed ones do.
_RIDGE = 1e-6
_LEAST = 1e-12  # of variables that are 0 at the optimum
_ITERATIONS = 25  # each divides the gap to the optimum by about ten

Point = tuple[jax.Array, jax.Array]


def onto_dual_cone(cosine: jax.Array) -> jax.Array:
    """Coefficients of each unit gradient's projection onto the dual cone ``{d: <d, g_t> >= 0 for all t}``.

    The projection of ``g_i`` is ``sum_t W_it g_t`` with ``W_i = argmin w^T C w`` over ``w >= e_i``: multiples
    of gradients are added until it conflicts with none (Quinton and Rey, arXiv 2406.16232, proposition 1). Of two
    gradients these are ``max(0, -C_12)``; of more a primal-dual interior point finds them, Newton on
    ``C (e_i + x) = z``, ``x_t z_t = mu`` with ``mu`` a tenth of its present value.

    Args:
      cosine: ``C: [T, T]`` float32 cosines of the tasks' gradients, 1 on the diagonal.

    Returns:
      ``[T, T]``, row ``i`` the coefficients of task ``i``'s projection, at least 1 on the diagonal.

    Example:
      >>> import jax.numpy as jnp
      >>> onto_dual_cone(jnp.array([[1.0, -0.5], [-0.5, 1.0]])).tolist()
      [[1.0, 0.5], [0.5, 1.0]]
      >>> onto_dual_cone(jnp.array([[1.0, -0.5, 0.0], [-0.5, 1.0, 0.0], [0.0, 0.0, 1.0]])).round(4)[0].tolist()
      [1.0, 0.5, 0.0]
    """
    size = cosine.shape[0]
    own = jnp.eye(size, dtype=cosine.dtype)
    if size <= 2:
        return own + (1 - own) * jnp.maximum(-cosine, 0)
    cosine = cosine + _RIDGE * own

    def project(target: jax.Array) -> jax.Array:
        slope = cosine @ target

        def step(point: Point, _: None) -> tuple[Point, None]:
            x, z = point
            mu = 0.1 * jnp.mean(x * z)
            matrix = cosine + jnp.diag(z / x)
            dx = jnp.linalg.solve(matrix, mu / x - slope - cosine @ x)
            dz = mu / x - z - z / x * dx
            length = jnp.minimum(to_boundary(x, dx), to_boundary(z, dz))
            length = jnp.where(jnp.all(jnp.isfinite(dx)), length, 0)
            x, z = (jnp.maximum(jnp.where(length > 0, v + length * dv, v), _LEAST) for v, dv in ((x, dx), (z, dz)))
            return (x, z), None

        (x, _), _ = jax.lax.scan(step, (jnp.ones_like(target), jnp.ones_like(target)), None, length=_ITERATIONS)
        return target + x

    return jax.vmap(project)(own)


def projected_mean(tasks: Tasks, state: PyTree) -> tuple[jax.Array, PyTree]:
    """Weights of the tasks' own gradients in the mean of the projected ones."""
    cosine, norms = cosines(tasks)
    # A task that is not present meets nothing: 1 on the diagonal, 0 beside it.
    alone = jnp.diag(1 - tasks.present.astype(cosine.dtype))
    lengths = norms * share_of_present(tasks.present)
    return jnp.where(tasks.present, lengths @ onto_dual_cone(cosine + alone) / norms, 0), state


def upgrad(
    inner_tx: optax.GradientTransformation, *, num_tasks: int | None = None
) -> optax.GradientTransformationExtraArgs:
    """UPGrad: ``G = 1/T sum_i P(g_i)``, ``P`` the projection onto the dual cone of the tasks' gradients.

    The cone ``{d: <d, g_t> >= 0 for all t}`` holds the directions against which no task's loss rises, to first order;
    it is convex, so ``<G, g_t> >= 0`` for every task, and gradients without conflict are averaged as they are (Quinton
    and Rey, *Jacobian Descent for Multi-Objective Optimization*, arXiv 2406.16232, section 3). With two tasks it is
    half of PCGrad's sum.

    Args:
      inner_tx: optimiser of the merged gradient.
      num_tasks: ``T``, to check the gradients against; ``None``: as they come.

    Returns:
      A transform whose ``update(grads, state, params, task_losses=None, task_counts=None)`` takes leaves
      ``[T, *shape]`` (or ``[1, *shape]``) and returns ``[*shape]``. Counts only tell which tasks are absent.

    Raises:
      ValueError: ``num_tasks`` below 1; in ``update`` a leaf without its task axis.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> params = jnp.zeros(2)
      >>> tx = upgrad(optax.sgd(1.0))
      >>> updates, _ = tx.update(jnp.array([[1.0, 0.0], [-1.0, 1.0]]), tx.init(params), params)
      >>> [round(x, 3) for x in updates.tolist()]
      [-0.25, -0.75]
    """
    return weighted("upgrad", inner_tx, projected_mean, num_tasks=num_tasks)
