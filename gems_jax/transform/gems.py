"""GEMS as an optax transformation: per-task gradients in, one constrained update out."""

import inspect
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from gems_jax.argument_checks import check_number
from gems_jax.extra_arguments import check_extras
from gems_jax.leaf_path import named_leaves
from gems_jax.linalg.matrix_dims import MatrixRule
from gems_jax.masked_leaves import tell_leaves, warn_of_stacked_leaves
from gems_jax.null_space.few_bits import warn_of_few_bits
from gems_jax.null_space.space import NullSpace
from gems_jax.task_batch import check_per_task
from gems_jax.task_grads import check_task_axis
from gems_jax.transform.gates import Gate
from gems_jax.transform.init_plans import bearing_plan
from gems_jax.transform.initial import initial_state
from gems_jax.transform.low_gradients import check_products
from gems_jax.transform.low_rank_gradient import is_low_rank, whole_shapes
from gems_jax.transform.plan import make_plan
from gems_jax.transform.settings import Settings, static_names
from gems_jax.transform.state import GemsState
from gems_jax.transform.step import UpdateArguments, take_step
from gems_jax.types import PyTree

# Arguments of `gems` that are Python facts: pass to optax.inject_hyperparams(gems, static_args=STATIC_ARGS).
STATIC_ARGS = static_names()


def gems(
    learning_rate: optax.ScalarOrSchedule,
    *,
    num_tasks: int,
    rank: int | float = 128,
    task_rank: int | float | None = None,
    side: Literal["auto", "in", "out"] = "auto",
    refresh_every: int | Callable[[jax.Array], Any] = 200,
    decomposition: Literal["auto", "svd", "eigh", "subspace", "random"] = "auto",
    signs: Literal["canonical", "align"] = "canonical",
    moments: Literal["keep", "reset"] = "keep",
    complementary: bool = False,
    stagger: bool = False,
    scale: float | jax.Array = 1.0,
    inner: optax.GradientTransformation | None = None,
    fallback: optax.GradientTransformation | None = None,
    gate: Gate | None = None,
    null_space: NullSpace | None = None,
    constraint: Literal["update", "gradient"] = "update",
    recovery: Literal["none", "fira"] = "none",
    weight_decay: float | jax.Array = 0.0,
    mask: PyTree | Callable[[PyTree], PyTree] | None = None,
    matrix_dims: PyTree | MatrixRule | None = None,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """Gradient multi-subspace tuning: many tasks, one model, general knowledge kept.

    For each kernel ``dW = -lr * (scale * (U_s X_s + sum_t g_t U_t X_t) + weight_decay * N W)``: low-rank
    gradients ``U^T G`` of the shared gradient ``G_s = sum_t w_t G_t`` and of each task's ``G_t``, ``X`` the
    inner transform's (Adam's) step on them, gates ``g``, bases ``U`` of leading singular vectors made inside
    the null space ``N`` (Zhao et al., *Unifying Search and Recommendation in LLMs via Gradient Multi-Subspace
    Tuning*, arXiv 2601.09496, section 3). Every update of a constrained kernel satisfies
    ``|K^T dW| <= 1e-5 |dW|`` and is emitted in float32, whatever the parameters' dtype.

    First transform of a chain: it merges the task axis. Use `merge_tasks` for other transforms beside it.

    Args:
      learning_rate: number or schedule.
      num_tasks: ``T``.
      rank: of the shared subspace; an int, or a float in (0, 1]: a fraction of the kernel's smaller side (``1``
        is one column, ``1.0`` the whole side). Capped at the smaller side and at the null space's dimension.
      task_rank: of each task's subspace; ``None``: half of ``rank``; 0: no task subspaces.
      side: of the bases: ``"in"`` ``U: [m, r]``, ``"out"`` ``V: [n, r]``; ``"auto"``: that of the null space,
        otherwise the smaller one.
      refresh_every: steps between new bases, counted from 0, or a callable ``count -> bool``.
      decomposition: ``"svd"``, ``"eigh"``, ``"subspace"`` (matrix products, warm-started) or ``"auto"``:
        ``"subspace"`` on TPU and for projected gradients, ``"eigh"`` elsewhere; or ``"random"``: drawn anew inside the
        null space at each refresh, whatever the gradients are.
      signs: ``"canonical"``, or ``"align"``: rotate a new basis onto the old one within its span.
      moments: ``"keep"`` or ``"reset"`` the inner state at a refresh.
      complementary: task subspaces orthogonal to the shared one.
      stagger: refresh a few members of each stack in every step, instead of all at once.
      scale: factor on the subspace updates.
      inner: transform of the low-rank gradients (each kernel's on its own), default ``optax.scale_by_adam()``.
        One that looks at parameters sees ``U^T W``.
      fallback: transform of all other leaves' merged gradients, default ``optax.scale_by_adam()``.
      gate: see `gems_jax.transform.gates`; default ``gates.heuristic()``.
      null_space: see `NullSpace`; ``None``: no constraint.
      constraint: ``"update"``: exact on every update; ``"gradient"``: gradients are projected before the
        inner transform, as released, which guarantees nothing.
      recovery: ``"fira"``: the update also gets what of the shared gradient lies outside the shared basis, inside the
        null space, each column scaled as the basis' column was (arXiv 2410.01623); ``"none"``: nothing of it. Needs
        whole gradients.
      weight_decay: decoupled; its term is projected too.
      mask: which leaves decay: a tree of bools like the parameters, or a callable giving one.
      matrix_dims: which leaves are kernels: callable ``(path, leaf) -> MatrixDims | None`` or a tree;
        default `default_matrix_dims`. Other leaves take the fallback.
      seed: of the random columns that complete bases of gradients of too low a rank.

    Returns:
      A transform whose ``update(grads, state, params, task_losses=None, task_counts=None,
      shared_grads=None)`` takes leaves ``[T, *shape]`` (or ``[1, *shape]`` where already merged) and returns
      updates ``[*shape]``. ``task_losses``, ``task_counts``: ``[T]``; ``shared_grads``: a tree of
      ``[*shape]`` to use as ``G_s``.

    Raises:
      ValueError: arguments out of range; in ``init`` a rule that names no kernel or a null space of another
        model; in ``update`` a leaf without its task axis (names the leaf), or a missing argument that the
        gate needs.
      TypeError: an argument of another type (names it), a parameter that is no array.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from gems_jax import task_value_and_grad
      >>> params = {"dense": {"kernel": jnp.ones((8, 4)), "bias": jnp.zeros(4)}}
      >>> loss = lambda p, x: jnp.mean((x @ p["dense"]["kernel"] + p["dense"]["bias"]) ** 2)
      >>> tx = gems(1e-2, num_tasks=2, rank=2)
      >>> state = tx.init(params)
      >>> batch = jax.random.normal(jax.random.key(0), (2, 16, 8))       # [tasks, rows, features]
      >>> losses, grads = task_value_and_grad(loss)(params, batch)
      >>> updates, state = tx.update(grads, state, params, task_losses=losses)
      >>> params = optax.apply_updates(params, updates)
      >>> bool(loss(params, batch.reshape(32, 8)) < losses.mean())
      True
    """
    options = dict(locals())  # the arguments, by the names that `Settings` has for them
    del options["learning_rate"]
    check_number("learning_rate", learning_rate, schedule=True)
    return optax.chain(_transform(Settings.of(options)), optax.scale_by_learning_rate(learning_rate))


def scale_by_gems(**options: Any) -> optax.GradientTransformationExtraArgs:
    """Gradient multi-subspace tuning without learning rate and decay; see `gems` for the arguments."""
    inspect.signature(scale_by_gems).bind(**options)
    return _transform(Settings.of(options))


def _signature_without(*names: str) -> inspect.Signature:
    """That of `gems`, without some of its arguments."""
    whole = inspect.signature(gems)
    return whole.replace(parameters=[p for name, p in whole.parameters.items() if name not in names])


scale_by_gems.__signature__ = _signature_without(  # type: ignore[attr-defined]
    "learning_rate", "weight_decay", "mask"
)


def _transform(settings: Settings) -> optax.GradientTransformationExtraArgs:
    num_tasks = settings.num_tasks

    def init_fn(params: PyTree) -> GemsState:
        plan = make_plan(params, settings)
        tell_leaves(params)
        if settings.null_space is not None and settings.constraint == "update":
            warn_of_few_bits(params, settings.null_space)
        return bearing_plan(initial_state(params, plan, settings), settings, plan, params)

    def update_fn(
        updates: PyTree,
        state: GemsState,
        params: PyTree | None = None,
        *,
        task_losses: jax.Array | None = None,
        task_counts: jax.Array | None = None,
        shared_grads: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, GemsState]:
        if params is None:
            raise ValueError("gems needs the parameters: call update(grads, state, params)")
        check_extras(extra_args)
        for name, value in (("task_losses", task_losses), ("task_counts", task_counts)):
            if value is None and name in settings.gate.needs:
                raise ValueError(f"the gate needs {name}: call update(..., {name}=array of [{num_tasks}])")
            if value is not None:
                check_per_task(name, value, num_tasks)
        shapes = whole_shapes(updates, params)
        check_task_axis(shapes, params, num_tasks)
        warn_of_stacked_leaves(shapes, "gems")
        call = UpdateArguments(
            grads=[g if is_low_rank(g) else jnp.asarray(g) for g in jax.tree.leaves(updates, is_leaf=is_low_rank)],
            weights=[jnp.asarray(w) for w in jax.tree.leaves(params)],
            shared=None if shared_grads is None else _shared_leaves(shared_grads, params, updates),
            losses=task_losses,
            counts=task_counts,
            extra=extra_args,
        )
        plan = make_plan(params, settings)
        check_products(call.grads, plan, settings)
        return take_step(call, params, state, plan, settings)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _shared_leaves(shared_grads: PyTree, params: PyTree, grads: PyTree) -> list[jax.Array]:
    if any(map(is_low_rank, jax.tree.leaves(grads, is_leaf=is_low_rank))):
        raise ValueError("shared_grads are whole gradients, and grads are projected: take task_value_and_grad's")
    leaves = named_leaves(shared_grads)
    shapes = [jnp.shape(p) for p in jax.tree.leaves(params)]
    if len(leaves) != len(shapes):
        raise ValueError(f"shared_grads has {len(leaves)} leaves, the parameters {len(shapes)}; pass matching trees")
    for (path, leaf), shape in zip(leaves, shapes, strict=True):
        if jnp.shape(leaf) != shape:
            raise ValueError(
                f"shared_grads leaf {path!r} has shape {list(jnp.shape(leaf))}, expected {list(shape)}: "
                "the parameter's own shape, without a task axis"
            )
    return [jnp.asarray(leaf) for _, leaf in leaves]
