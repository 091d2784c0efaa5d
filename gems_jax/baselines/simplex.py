"""Smooth convex functions minimised over the simplex, in a fixed number of Newton steps."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Derivatives = Callable[[jax.Array], tuple[jax.Array, jax.Array]]
Point = tuple[jax.Array, jax.Array, jax.Array]


def minimise_on_simplex(derivatives: Derivatives, present: jax.Array, iterations: int = 30) -> jax.Array:
    """``argmin f(w)`` over ``w >= 0, sum w = 1, w_t = 0`` for tasks not present.

    Primal-dual interior point: Newton on ``grad f + lambda 1 - z = 0``, ``w_t z_t = mu``, ``sum w = 1`` with
    ``mu`` a tenth of its present value, and steps that keep ``w`` and ``z`` positive.

    Args:
      derivatives: ``w [T] -> (gradient [T], Hessian [T, T])`` of a convex function whose values are of order 1.
      present: ``[T]`` bool.
      iterations: Newton steps.

    Returns:
      ``[T]`` float32; zeros where no task is present.

    Example:
      >>> import jax.numpy as jnp
      >>> gram = jnp.array([[1.0, 0.0], [0.0, 3.0]])          # min |w_1 g_1 + w_2 g_2|^2, orthogonal gradients
      >>> w = minimise_on_simplex(lambda w: (gram @ w, gram), jnp.array([True, True]))
      >>> [round(x, 4) for x in w.tolist()]
      [0.75, 0.25]
    """
    size = present.shape[0]
    there = present.astype(jnp.float32)
    number = jnp.maximum(jnp.sum(there), 1)
    both = there * there[:, None]
    corner = jnp.where(jnp.any(present), 0.0, 1.0)

    def step(carry: Point, _: None) -> tuple[Point, None]:
        w, z, multiplier = carry
        gradient, hessian = derivatives(w * there)
        target = 0.1 * jnp.sum(there * w * z) / number
        slope = gradient + multiplier - target / w
        # Tasks not present: identity rows, so that their variables stay.
        matrix = hessian * both + jnp.diag(jnp.where(present, z / w, 1.0))
        system = jnp.block([[matrix, there[:, None]], [there[None], corner[None, None]]])
        right = jnp.concatenate([-slope * there, (1 - jnp.sum(w * there))[None]])
        solved = jnp.linalg.solve(system, right)
        dw, dm = solved[:size] * there, solved[size]
        dz = (target / w - z - z / w * dw) * there
        length = jnp.minimum(to_boundary(w, dw), to_boundary(z, dz))
        length = jnp.where(jnp.all(jnp.isfinite(solved)), length, 0)
        move = lambda x, d: jnp.where(length > 0, x + length * d, x)  # noqa: E731
        return (jnp.maximum(move(w, dw), 1e-12), jnp.maximum(move(z, dz), 1e-12), move(multiplier, dm)), None

    start = (jnp.where(present, 1 / number, 1.0), jnp.ones((size,), jnp.float32), jnp.zeros((), jnp.float32))
    (w, _, _), _ = jax.lax.scan(step, start, None, length=iterations)
    w = w * there
    return w / jnp.maximum(jnp.sum(w), jnp.finfo(jnp.float32).tiny)


def to_boundary(x: jax.Array, dx: jax.Array) -> jax.Array:
    """How much of a step, at most all, keeps a positive ``x`` positive."""
    ratios = jnp.where(dx < 0, -x / jnp.where(dx < 0, dx, -1), jnp.inf)
    return jnp.minimum(1.0, 0.99 * jnp.min(ratios))
