"""The passes of a step: one with the bases in force, and more of them where bases are refreshed."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gems_jax.linalg.orthonormal import matmul
from gems_jax.linalg.sizes import Size
from gems_jax.linalg.stacks import exchanged
from gems_jax.projected.model_passes import GroupProducts, Model, ServedGroup, run_groups
from gems_jax.projected.packed_bases import SKETCH, PackedBases, packed, where_they_lie
from gems_jax.projected.passes import Passed
from gems_jax.projected.power_iteration import BLOCKS, END, FIRST, Branches, Lows, bases_of, next_pass, sweep
from gems_jax.task_grads import weighted_sum
from gems_jax.transform.active_null_space import ActiveNullSpace
from gems_jax.transform.diagnostics import diagnose_gradients
from gems_jax.transform.group_gradients import group_gradients
from gems_jax.transform.random_bases import draw_bases, member_ids
from gems_jax.transform.refresh import Bases as GroupBases
from gems_jax.transform.refresh import NewBases, Refresh, refresh_at, room
from gems_jax.transform.refresh_request import column_masks, projector_of, usable_branches


class Decided(NamedTuple):
    """What the first pass of a step says, by which its bases are refreshed: small arrays.

    Attributes:
      weights: ``[T]`` of the tasks in the shared gradient.
      asked, waiting: ``[1 + T, k]`` of each group: bases to be replaced, and those that should be and cannot yet.
      sizes: of each group's gradients.
    """

    weights: jax.Array
    asked: list[jax.Array]
    waiting: list[jax.Array]
    sizes: list[tuple[Size, Size | None]]


class Pass(NamedTuple):
    """A pass of the step, and what is known behind it.

    Attributes:
      number: of the pass that is next.
      again: ``[]`` bool, whether there is one.
      bases, done: of each group, and which of them are new, ``[1 + T, k]``.
      products: of each group, of the shared bases with the sketch's columns behind them, ``[k, T, ...]``.
      passed: by the model, products apart.
      decided: see `Decided`.
    """

    number: jax.Array
    again: jax.Array
    bases: list[PackedBases]
    done: list[jax.Array]
    products: list[GroupProducts]
    passed: Passed
    decided: Decided


def last_pass(model: Model, groups: list[ServedGroup], sketches: list[jax.Array], counts: jax.Array | None) -> Pass:
    """A pass with the bases in force, in a refresh more of them: one loop, for which the model is compiled once."""
    settings, state = model.served.settings, model.served.state
    how = refresh_at(state.count, settings)

    @jax.jit  # traced once, for its shapes and in the loop
    def run(bases: list[PackedBases]) -> tuple[Passed, list[GroupProducts], Decided]:
        passed, products = run_groups(model, groups, [these.with_sketch for these in bases])
        passed = passed._replace(products={})
        decided = _decide(model, groups, sketches, [these.bases for these in bases], products, passed, counts)
        return passed, exchanged(products), decided

    def step(now: Pass) -> Pass:
        number, decided = now.number, now.decided
        bases, done = _bases(model, groups, sketches, now, how)
        # Always taken: what a pass needs is not there before it begins.
        passed, products, found = jax.lax.cond(number < END, run, lambda _: nothing, bases)
        decided = jax.tree.map(lambda new, old: jnp.where(number == FIRST, new, old), found, decided)
        branches = _branches(model, groups, decided)
        if how.method == "random":
            asked = jnp.any(jnp.stack([jnp.any(b.asked) for b in branches]))
            number = jnp.where((number == FIRST) & asked, BLOCKS, END)
        else:
            lows = _merged(exchanged(products), decided.weights)
            number, done = next_pass(number, branches, [these.bases for these in bases], lows, done)
        return Pass(number, number < END, bases, done, products, passed, decided)

    bases = [packed(group.bases, sketch) for group, sketch in zip(groups, sketches, strict=True)]
    nothing = jax.tree.map(lambda x: jax.lax.full(x.shape, 0, x.dtype), jax.eval_shape(run, bases))
    passed, products, decided = nothing
    done = [jnp.zeros_like(asked) for asked in decided.asked]
    start = Pass(jnp.int32(FIRST), jnp.bool_(False), bases, done, products, passed, decided)
    # By two of its values: of a condition on one XLA (of jaxlib 0.10.2) asks in pass after pass how it comes about, and
    # copies the whole body for it: a third of the time to compile.
    return jax.lax.while_loop(lambda now: (now.number == FIRST) | now.again, step, start)


def inside(wide: jax.Array) -> jax.Array:
    """``U^T G`` of ``[U Z]^T G``."""
    return wide[..., :-SKETCH, :]


def outside(basis: jax.Array, sketch: jax.Array, wide: jax.Array) -> jax.Array:
    """``Z^T (1 - U U^T) G = [-Z^T U, 1] [U Z]^T G``, ``[T, k, SKETCH, q]``."""
    less = jnp.concatenate(
        [-matmul(sketch.mT, basis), jnp.broadcast_to(jnp.eye(SKETCH, dtype=basis.dtype), (len(basis), SKETCH, SKETCH))],
        axis=-1,
    )
    return exchanged(matmul(jnp.broadcast_to(less[:, None], (len(less), len(wide), *less.shape[1:])), exchanged(wide)))


def _decide(
    model: Model,
    groups: list[ServedGroup],
    sketches: list[jax.Array],
    bases: list[GroupBases],
    products: list[GroupProducts],
    passed: Passed,
    counts: jax.Array | None,
) -> Decided:
    """By a pass with the bases in force."""
    settings, state = model.served.settings, model.served.state
    lows = [inside(wide) for wide, _ in products]
    rests = [outside(b[0], z, wide) for b, z, (wide, _) in zip(bases, sketches, products, strict=True)]
    others = [passed.grads[i] for i in sorted(model.served.leaves.values()) if i in passed.grads]
    diagnosed = diagnose_gradients([*lows, *rests, *others], settings.num_tasks, counts, None)
    decided = Decided(diagnosed.weights, [], [], [])
    for group, low, rest in zip(groups, lows, rests, strict=True):
        of_shared, of_tasks = group_gradients(low, rest, diagnosed).sizes
        sizes = of_shared, None if group.bases[1] is None else of_tasks
        pending = group.pending if group.bases[1] is not None else group.pending[:1]
        masks = column_masks(group.kernels, settings.complementary)
        wanted = (pending | refresh_at(state.count, settings).due) & room(masks, pending.shape)
        usable = usable_branches(sizes, diagnosed.present)
        decided.asked.append(wanted & usable)
        decided.waiting.append(wanted & ~usable)
        decided.sizes.append(sizes)
    return decided


def _branches(model: Model, groups: list[ServedGroup], decided: Decided) -> list[Branches]:
    """The branches of all groups, those to be replaced marked."""
    settings, state = model.served.settings, model.served.state
    active = ActiveNullSpace(settings.null_space, settings.constraint, state.null_space)
    return [
        Branches(
            group.bases,
            asked,
            projector_of(active, group.kernels, len(group.bases[0])),
            column_masks(group.kernels, settings.complementary),
            sizes,
        )
        for group, asked, sizes in zip(groups, decided.asked, decided.sizes, strict=True)
    ]


def _bases(
    model: Model, groups: list[ServedGroup], sketches: list[jax.Array], now: Pass, how: Refresh
) -> tuple[list[PackedBases], list[jax.Array]]:
    """The bases of the next pass, and which are new."""
    weights, branches = now.decided.weights, _branches(model, groups, now.decided)

    def across(others: list[GroupBases]) -> Lows:
        products = run_groups(model, groups, others, across=True)[1]
        return [(weighted_sum(shared, weights), own) for shared, own in products]

    if how.method == "random":

        def bases_and_done(_: Any) -> Any:
            ids = [member_ids(group.kernels) for group in groups]
            drawn = [_drawn(branch, numbers, how) for branch, numbers in zip(branches, ids, strict=True)]
            new = [packed((shared, task), z) for (shared, task, _), z in zip(drawn, sketches, strict=True)]
            return new, [done for *_, done in drawn]

        return where_they_lie(now.number > FIRST, bases_and_done, (now.bases, now.done))

    seen = sweep(now.number, lambda: _merged(exchanged(now.products), weights), across)
    return bases_of(now.number, branches, now.bases, now.done, seen, sketches, how), now.done


def _merged(products: list[GroupProducts], weights: jax.Array) -> Lows:
    """Without the sketch, of the merged gradient where the basis is shared."""
    return [(weighted_sum(inside(wide), weights), own) for wide, own in products]


def _drawn(branches: Branches, ids: tuple[int, ...], how: Refresh) -> NewBases:
    numbers = jnp.asarray(ids, jnp.uint32)
    return draw_bases(branches.bases, numbers, branches.asked, branches.projector, branches.masks, how)
