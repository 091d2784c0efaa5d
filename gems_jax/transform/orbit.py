"""ORBIT: weights that stray too far from the pretrained ones are averaged with them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gems_jax.argument_checks import check_number, check_transform
from gems_jax.boxes import unboxed
from gems_jax.linalg.sizes import squares
from gems_jax.transform.settings import Mask, chosen_leaves
from gems_jax.transform.state import work_dtype
from gems_jax.types import PyTree


class OrbitState(NamedTuple):
    """State of `orbit`.

    Attributes:
      initial: ``[*shape]`` the pretrained weights of the leaves that are held, in a tree like the parameters;
        ``optax.MaskedNode`` in place of the others.
      distance: ``[]`` float32 of the weights from them after the last update.
      averaged: ``[]`` int32 number of updates that averaged.
      inner: state of the wrapped transform.
    """

    initial: PyTree
    distance: jax.Array
    averaged: jax.Array
    inner: PyTree


def orbit(
    tx: optax.GradientTransformation,
    max_distance: float | jax.Array,
    *,
    share: float = 0.5,
    mask: Mask = None,
) -> optax.GradientTransformationExtraArgs:
    """Averages the weights with the pretrained ones wherever an update takes them too far away.

    With ``W`` the weights after the update of ``tx`` and ``d = |W - W_0|`` over all leaves that are held,
    ``W <- (1 - share) W + share W_0`` where ``d > max_distance`` (ORBIT, Verma et al., arXiv 2605.12419). Here, an
    average that would still be outside lands at ``max_distance``: no update ends farther away. The emitted update ends
    at the average, so this is the last of a chain, behind the learning rate; moments inside ``tx`` stay as they are.

    Args:
      tx: any transform, learning rate included; the pretrained weights are the parameters of ``init``.
      max_distance: above 0, Euclidean.
      share: of the pretrained weights in the average, above 0 and at most 1, which starts anew.
      mask: which leaves are held: a tree of bools like the parameters, or a callable giving one; ``None``: all. Leaves
        that are new, such as rows of added items, have no pretrained weights.

    Returns:
      A transform with the call of ``tx``; updates of held leaves are float32 (float64 stays), so that they end where
      they should. Parameters of fewer bits are rounded when an update is added to them.

    Raises:
      ValueError: a number out of range, a mask that does not fit the parameters or holds none; in ``update`` no
        parameters.
      TypeError: an argument of another type, named.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> params = {"w": jnp.zeros(2)}
      >>> tx = orbit(optax.sgd(1.0), max_distance=1.0)
      >>> state = tx.init(params)
      >>> for _ in range(2):
      ...     updates, state = tx.update({"w": jnp.array([-0.75, 0.0])}, state, params)
      ...     params = optax.apply_updates(params, updates)
      ...     print(params["w"].tolist(), int(state.averaged))
      [0.75, 0.0] 0
      [0.75, 0.0] 1
    """
    check_transform("tx", tx)
    check_number("max_distance", max_distance)
    check_number("share", share)
    if not isinstance(max_distance, jax.Array) and not max_distance > 0:
        raise ValueError(f"max_distance is a distance of weights, above 0, got {max_distance}")
    if not 0 < share <= 1:
        raise ValueError(f"share is that of the pretrained weights in an average, in (0, 1], got {share}")
    tx = optax.with_extra_args_support(tx)

    def init_fn(params: PyTree) -> OrbitState:
        holds = iter(_holds(params, mask))
        # Copies: parameters and states are donated.
        initial = jax.tree.map(
            lambda p: jnp.array(p, copy=True) if next(holds) else optax.MaskedNode(), unboxed(params)
        )
        return OrbitState(initial, jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32), tx.init(params))

    def update_fn(
        updates: PyTree, state: OrbitState, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, OrbitState]:
        if params is None:
            raise ValueError("orbit needs the parameters: call update(grads, state, params)")
        steps, inner = tx.update(updates, state.inner, params, **extra_args)
        home = iter(jax.tree.leaves(state.initial))
        leaves = list(zip(jax.tree.leaves(steps), jax.tree.leaves(params), _holds(params, mask), strict=True))
        # From the pretrained weights to the present ones, before the update.
        before = [_wide(weight) - _wide(next(home)) if hold else None for _, weight, hold in leaves]
        after = [None if way is None else way + _wide(step) for way, (step, *_) in zip(before, leaves, strict=True)]
        distance = jnp.sqrt(sum(squares(way, way.ndim).astype(jnp.float32) for way in after if way is not None))
        too_far = distance > max_distance
        kept = jnp.minimum(1 - share, max_distance / jnp.where(too_far, distance, 1))
        landed = [
            step
            if start is None or end is None
            else jnp.where(too_far, kept.astype(end.dtype) * end - start, _wide(step))
            for (step, *_), start, end in zip(leaves, before, after, strict=True)
        ]
        state = OrbitState(
            state.initial,
            jnp.where(too_far, kept * distance, distance).astype(jnp.float32),
            jnp.where(too_far, optax.safe_increment(state.averaged), state.averaged),
            inner,
        )
        return jax.tree.unflatten(jax.tree.structure(steps), landed), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(work_dtype(x.dtype))


def _holds(params: PyTree, mask: Mask) -> list[bool]:
    """Which leaves are held, in order."""
    flags = chosen_leaves(params, mask)
    if not any(flags):
        raise ValueError("mask holds none of the parameters, so that nothing would be averaged; leave orbit out")
    return flags
