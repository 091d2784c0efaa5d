"""A refresh of bases: when it is due, what it is made from, and the decomposition of a group of kernels."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from gems_jax.linalg.projection import Projector
from gems_jax.linalg.sizes import Size, largest
from gems_jax.linalg.stacks import map_stack, mesh_of_devices
from gems_jax.linalg.subspace import Decomposition, make_basis
from gems_jax.transform.settings import Settings
from gems_jax.types import PyTree


class Refresh(NamedTuple):
    """How and whether bases are refreshed in a step: static choices, and this step's flags.

    Attributes:
      settings: of the transform.
      method: of decomposition, ``"auto"`` resolved; or ``"random"``, see `gems_jax.transform.random_bases`.
      stagger_every: steps over which the refreshes of all kernels are spread, ``None``: all at once.
      step: ``[]`` int32.
      due: ``[]`` bool, whether a refresh is scheduled in this step (with ``stagger``: of everything).
      key: random key.
    """

    settings: Settings
    method: Decomposition | Literal["random"]
    stagger_every: int | None
    step: jax.Array
    due: jax.Array
    key: jax.Array


def refresh_at(count: jax.Array, settings: Settings) -> Refresh:
    """The `Refresh` of the step after ``count`` others: before the first update, then every so many."""
    every = settings.refresh_every
    interval: int | None = None
    if callable(every):
        due = jnp.asarray(every(count), bool)
    elif settings.stagger:
        interval, due = int(every), count == 0
    else:
        due = count % int(every) == 0
    method: Any = settings.decomposition
    if method == "auto":
        method = "subspace" if jax.default_backend() == "tpu" else "eigh"
    return Refresh(settings, method, interval, count, due, jax.random.key(settings.seed))


def has_basis(basis: jax.Array) -> jax.Array:
    """Whether there is a basis: ``[..., p, r] -> [...]``; before the first refresh all entries are 0."""
    return largest(jax.lax.index_in_dim(basis, 0, basis.ndim - 1, keepdims=False), 1) > 0


def where_leading(condition: jax.Array, new: PyTree, old: PyTree) -> PyTree:
    """``where`` on trees of arrays whose leading axes are those of ``condition``."""

    def select(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.where(condition.reshape(*condition.shape, *(1,) * (a.ndim - condition.ndim)), a, b)

    return jax.tree.map(select, new, old)


Bases = tuple[jax.Array, jax.Array | None]  # shared [k, p, r], task [T, k, p, r_t]
Gradients = tuple[jax.Array, jax.Array | None]  # shared [k, p, q], task [T, k, p, q]
Masks = tuple[jax.Array | None, jax.Array | None]  # of columns, [k, r] and [k, r_t]


def compute_bases(
    old: Bases, gradients: Gradients, do: jax.Array, projector: Projector, masks: Masks, refresh: Refresh
) -> tuple[jax.Array, jax.Array | None, jax.Array]:
    """New bases of the branches in ``do: [1 + T, k]`` whose gradients yield one, and which those are."""
    method: Any = refresh.method

    def one(varying: Any, shared: Any) -> tuple[jax.Array, jax.Array]:
        gradient, previous = varying
        factor, exclude, columns = shared
        return make_basis(
            gradient,
            previous.shape[-1],
            Projector(factor, projector.complement),
            method=method,
            signs=refresh.settings.signs,
            previous=previous,
            has_previous=has_basis(previous),
            exclude=exclude,
            columns=columns,
            key=refresh.key,
        )

    def stack(depth: int, varying: Any, shared: Any) -> tuple[jax.Array, jax.Array]:
        if refresh.method != "svd" and mesh_of_devices():
            # Thin blocks or Gram matrices travel, gradients stay: no device needs a whole one.
            return one(varying, shared)
        return map_stack(one, depth, varying, shared)

    shared, replaced = stack(1, (gradients[0], old[0]), (projector.factor, None, masks[0]))
    done = (replaced & do[0])[None]
    shared = where_leading(done[0], shared, old[0])
    if old[1] is None or gradients[1] is None:
        return shared, None, done
    exclude = shared if refresh.settings.complementary else None
    task, replaced = stack(2, (gradients[1], old[1]), (projector.factor, exclude, masks[1]))
    task_done = replaced & do[1:]
    return shared, where_leading(task_done, task, old[1]), jnp.concatenate([done, task_done])


class Request(NamedTuple):
    """A group's bases and the gradients that they are refreshed from, see `gems_jax.transform.refresh_request`.

    Attributes:
      old: bases in force.
      gradients: to make new ones from.
      sizes: of these.
      pending: ``[1 + T, k]`` bool, branches that wait (``[1, k]`` without task branches).
      usable: the same shape, branches whose gradient is finite and not zero.
      projector: factor ``[k, p, c]``, or none.
      masks: of the columns there is room for.
      turns: of each of the ``k``, the step of an interval in which it is refreshed where refreshes are staggered,
        in order: see `gems_jax.transform.plan.Plan.turns`.
      ids: uint32 ``[k]``, what random bases are drawn by.
    """

    old: Bases
    gradients: Gradients
    sizes: tuple[Size, Size | None]
    pending: jax.Array
    usable: jax.Array
    projector: Projector
    masks: Masks
    turns: tuple[int, ...]
    ids: jax.Array


class Refreshed(NamedTuple):
    """A group's bases, and which branches wait now, were replaced and could not be, ``[1 + T, k]``.

    A branch waits for a gradient to be decomposed. Where there was one, and no basis came of it, it is not asked again
    before the next refresh: one that never has a basis would have all of its shape decomposed in every step.
    """

    bases: Bases
    pending: jax.Array
    done: jax.Array
    failed: jax.Array


NewBases = tuple[jax.Array, jax.Array | None, jax.Array]  # shared and task bases, branches replaced


def members_due(turns: Sequence[int], refresh: Refresh) -> jax.Array:
    """``[k]`` bool: the members of a stack whose turn it is in this step; none in the first, which refreshes all."""
    if refresh.stagger_every is None:
        return jnp.zeros((len(turns),), bool)
    return (refresh.step > 0) & (jnp.asarray(turns) == refresh.step % refresh.stagger_every)


def room(masks: Masks, shape: tuple[int, ...]) -> jax.Array:
    """``[1 + T, k]`` bool: branches with room for any column; the others have nothing to wait for."""
    shared, task = (
        jnp.ones(shape[1:], bool) if mask is None else jnp.any(jnp.asarray(mask), axis=-1) for mask in masks
    )
    return jnp.concatenate([shared[None], jnp.broadcast_to(task, (shape[0] - 1, *shape[1:]))])
