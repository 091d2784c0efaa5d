"""PCGrad: gradients projected off those they conflict with."""

import jax
import jax.numpy as jnp
import optax

from gems_jax.argument_checks import check_whole
from gems_jax.baselines.weighting import Tasks, weighted


def projected(gramian: jax.Array, orders: jax.Array) -> jax.Array:
    """Coefficients of the projected gradients in terms of the tasks' own.

    Row ``i`` starts as ``g_i`` and, for each ``j != i`` of its order, loses its part along ``g_j`` where
    ``<row, g_j> < 0``; inner products follow from the Gramian.

    Args:
      gramian: ``[T, T]``, zero rows and columns for tasks not present.
      orders: ``[T, T]`` int32, row ``i`` the order in which task ``i`` meets the others.

    Returns:
      ``[T, T]``, row ``i`` the coefficients of task ``i``'s projected gradient.

    Example:
      >>> import jax.numpy as jnp
      >>> projected(jnp.array([[1.0, -1.0], [-1.0, 2.0]]), jnp.array([[0, 1], [0, 1]])).tolist()
      [[1.0, 0.5], [1.0, 1.0]]
    """
    sizes = jnp.diagonal(gramian)

    def one(task: jax.Array, order: jax.Array) -> jax.Array:
        def meet(row: jax.Array, other: jax.Array) -> tuple[jax.Array, None]:
            product = row @ gramian[:, other]
            conflict = (other != task) & (product < 0) & (sizes[other] > 0)
            part = jnp.where(conflict, product / jnp.where(conflict, sizes[other], 1), 0)
            return row.at[other].add(-part), None

        start = jax.nn.one_hot(task, sizes.shape[0], dtype=jnp.float32) * (sizes[task] > 0)
        return jax.lax.scan(meet, start, order)[0]

    return jax.vmap(one)(jnp.arange(sizes.shape[0]), orders)


def pcgrad(
    inner_tx: optax.GradientTransformation, *, seed: int = 0, num_tasks: int | None = None
) -> optax.GradientTransformationExtraArgs:
    """PCGrad: the sum of the tasks' gradients, each projected off those it conflicts with.

    ``g_i <- g_i - <g_i, g_j> / |g_j|^2 g_j`` for each ``j != i``, in random order, where ``<g_i, g_j> < 0``;
    ``G = sum_i g_i`` (Yu et al., arXiv 2001.06782, algorithm 1). With two tasks no conflict is left.

    Args:
      inner_tx: optimiser of the merged gradient.
      seed: of the random orders; the key is in the state.
      num_tasks: ``T``, to check the gradients against; ``None``: as they come.

    Returns:
      A transform whose ``update(grads, state, params, task_losses=None, task_counts=None)`` takes leaves
      ``[T, *shape]`` (or ``[1, *shape]``) and returns ``[*shape]``. Counts only tell which tasks are absent.

    Raises:
      ValueError: ``num_tasks`` below 1; in ``update`` a leaf without its task axis.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> params = jnp.zeros(2)
      >>> tx = pcgrad(optax.sgd(1.0))
      >>> tx.update(jnp.array([[1.0, 0.0], [-1.0, 1.0]]), tx.init(params), params)[0].tolist()
      [-0.5, -1.5]
    """
    check_whole("seed", seed)

    def init() -> jax.Array:
        # Plain numbers, which every format stores, rather than a key's own type.
        return jax.random.key_data(jax.random.key(seed))

    def weigh(tasks: Tasks, state: jax.Array) -> tuple[jax.Array, jax.Array]:
        key, now = jax.random.split(jax.random.wrap_key_data(state))
        size = tasks.present.shape[0]
        orders = jax.vmap(lambda k: jax.random.permutation(k, size))(jax.random.split(now, size))
        return jnp.sum(projected(tasks.gramian, orders), axis=0), jax.random.key_data(key)

    return weighted("pcgrad", inner_tx, weigh, init, num_tasks=num_tasks)
