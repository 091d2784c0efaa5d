"""GaLore by optax's own implementation: the joint gradient in one low-rank subspace a matrix.

``train.method: galore`` is another one: `gems_jax.gems` without task subspaces and null space, with its refreshes.
"""

from typing import Any

import jax
import optax
import optax.contrib

from gems_jax.argument_checks import check_number, check_transform, check_whole
from gems_jax.baselines.joint import joint
from gems_jax.boxes import unboxed
from gems_jax.types import PyTree
from gems_jax.whole_number import whole


def galore(
    inner_tx: optax.GradientTransformation,
    *,
    rank: int = 128,
    refresh_every: int = 200,
    scale: float = 1.0,
    weight_dimension_numbers: Any = None,
    num_tasks: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """GaLore on the joint gradient: ``dW = scale * P X``, ``X`` the inner transform's step on ``P^T G``.

    ``P`` holds the leading singular vectors of ``G`` on the longer side, taken anew every ``refresh_every``
    steps (Zhao et al., arXiv 2403.03507); computed by ``optax.contrib.scale_by_galore``. Leaves that are not
    matrices take the inner transform as they are.

    Args:
      inner_tx: optimiser of the low-rank gradients, which cannot look at parameters. For decoupled weight decay
        chain it behind: ``optax.chain(galore(optax.scale_by_adam()), optax.add_decayed_weights(0.1),
        optax.scale_by_learning_rate(1e-3))``.
      rank: of the subspaces, a whole number of columns, capped at the smaller side.
      refresh_every: steps between new subspaces.
      scale: factor on the updates of matrices.
      weight_dimension_numbers: as in ``optax.contrib.scale_by_galore``; ``None``: leaves of two axes.
      num_tasks: ``T``, to check the gradients against; ``None``: as they come.

    Returns:
      A transform with the call of `joint`.

    Raises:
      ValueError: arguments out of range; in ``update`` a leaf without its task axis, or an inner transform that
        needs parameters.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> params = {"w": jnp.zeros((3, 2))}
      >>> tx = galore(optax.sgd(1.0), rank=1)
      >>> grads = {"w": jnp.stack([jnp.ones((3, 2)), 3 * jnp.ones((3, 2))])}
      >>> updates, state = tx.update(grads, tx.init(params), params)
      >>> updates["w"].round(3).tolist()                      # a gradient of rank one stays whole
      [[-2.0, -2.0], [-2.0, -2.0], [-2.0, -2.0]]
    """
    rank = whole("rank", rank)
    check_transform("inner_tx", inner_tx)
    check_number("scale", scale)
    check_whole("refresh_every", refresh_every, least=1, what="a number of steps")
    low_rank = optax.contrib.scale_by_galore(
        rank=rank,
        update_proj_gap=refresh_every,
        scale=scale,
        base_optimizer=_without_params(inner_tx),
        weight_dimension_numbers=unboxed(weight_dimension_numbers),
    )
    return joint(_without_boxes(low_rank), num_tasks=num_tasks)


def _without_boxes(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """For a transform whose state mirrors the parameters with arrays of other shapes, which lie in no box of theirs."""

    def init_fn(params: PyTree) -> PyTree:
        return tx.init(unboxed(params))

    def update_fn(updates: PyTree, state: PyTree, params: PyTree | None = None) -> tuple[PyTree, PyTree]:
        steps, state = tx.update(unboxed(updates), state, unboxed(params))
        return jax.tree.unflatten(jax.tree.structure(updates), jax.tree.leaves(steps)), state

    return optax.GradientTransformation(init_fn, update_fn)


def _without_params(inner_tx: optax.GradientTransformation) -> optax.GradientTransformation:
    inner = optax.with_extra_args_support(inner_tx)

    def update_fn(updates: PyTree, state: PyTree, params: PyTree | None = None) -> tuple[PyTree, PyTree]:
        try:
            return inner.update(updates, state, params)
        except ValueError as error:
            if "params" not in str(error):
                raise
            raise ValueError(
                "galore's inner transform works on low-rank gradients and cannot look at parameters, as weight decay "
                "does; give one that does not and chain optax.add_decayed_weights behind"
            ) from error

    return optax.GradientTransformation(inner.init, update_fn)
