"""Sequences of gradients made to break things: what must hold after every step, whatever came before."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import (
    LOSSES,
    assert_no_leak,
    difference,
    make_grads,
    make_null_space,
    make_params,
    orthonormal,
    run,
)

import gems_jax as gj

pytestmark = pytest.mark.slow
FEW = settings(max_examples=10, derandomize=True)
SHAPES = {"tall": (10, 6), "stack": (2, 8, 6), "free": (6, 9), "scale": (6,)}
CONSTRAINED = {"tall": 10, "stack": 8}
TASKS, STEPS, EVERY = 3, 8, 3
RULE = lambda path, leaf: gj.MatrixDims() if len(leaf.shape) > 1 else None  # noqa: E731

SKIPPED = ("nan", "inf")
ABSENT = ("zero", "subnormal", "no tokens")
# Squares of the smallest and the largest are 0 and not finite in float32.
PRESENT = ("normal", "smallest", "tiny", "large", "largest", "rank one", "protected", "equal", "constant")
KINDS = SKIPPED + ABSENT + PRESENT
SCALES = {"subnormal": 1e-41, "smallest": 1e-30, "tiny": 1e-12, "large": 1e14, "largest": 1e30}


class Machine(NamedTuple):
    null_space: gj.NullSpace
    params: dict
    state: tuple
    step: object


@functools.cache
def null_space():
    protected = {name: orthonormal(d, 2, [5, d]) for name, d in CONSTRAINED.items()}
    # The second of the stack has room for two directions only, fewer than the rank of its bases.
    protected["stack"] = [protected["stack"], orthonormal(8, 6, 6)]
    moments = {"tall": protected["tall"] @ protected["tall"].T}
    moments["stack"] = np.stack([k @ k.T for k in protected["stack"]])
    return gj.NullSpace.from_moments(moments, energy=1 - 1e-9), protected


CONFIGURATIONS = {
    "eigh": {"decomposition": "eigh", "weight_decay": 0.1},
    "subspace, everything else": {
        "decomposition": "subspace",
        "signs": "align",
        "moments": "reset",
        "complementary": True,
        "gate": gj.gates.learned(learning_rate=1e-2, hidden=8),
    },
}


@functools.cache
def machine(name, dtype="float32"):
    ns, _ = null_space()
    tx = gj.gems(
        1e-2, num_tasks=TASKS, rank=4, refresh_every=EVERY, null_space=ns, matrix_dims=RULE, **CONFIGURATIONS[name]
    )
    params = jax.tree.map(lambda p: jnp.asarray(p, dtype), make_params(SHAPES))

    def step(grads, state, params, losses, counts):
        updates, state = tx.update(grads, state, params, task_losses=losses, task_counts=counts)
        return optax.apply_updates(params, updates), state, updates

    state = jax.jit(tx.init)(params)
    return Machine(ns, params, state, jax.jit(step))


def spoil(grads, task, kind, step):
    rng = np.random.default_rng([step, task])
    for name, g in grads.items():
        mine = g[task]
        if kind in ("zero", "no tokens"):
            mine[...] = 0
        elif kind in ("nan", "inf"):
            mine.reshape(-1)[:: mine.size - 1] = np.nan if kind == "nan" else -np.inf
        elif kind in SCALES:
            mine *= SCALES[kind]
        elif kind == "constant":
            mine[...] = 1
        elif mine.ndim < 2:
            continue
        elif kind == "rank one":
            mine[...] = rng.normal(size=(mine.shape[-2], 1)) * rng.normal(size=(1, mine.shape[-1]))
        elif kind == "equal":
            wide = mine.shape[-2] < mine.shape[-1]
            square = orthonormal(max(mine.shape[-2:]), min(mine.shape[-2:]), [step, task])
            mine[...] = square.T if wide else square
        elif kind == "protected" and name in CONSTRAINED:
            for part, k in (
                [(mine, null_space()[1][name])] if name == "tall" else zip(mine, null_space()[1][name], strict=True)
            ):
                part[...] = k @ rng.normal(size=(k.shape[1], mine.shape[-1]))


def gradients(step, kinds, dtype="float32"):
    grads = make_grads(step, TASKS, SHAPES)
    for task, kind in enumerate(kinds):
        spoil(grads, task, kind, step)
    return {name: g.astype(dtype) for name, g in grads.items()}


def assert_finite(tree):
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        assert np.all(np.isfinite(np.asarray(leaf, float))), gj.leaf_path(path)


def assert_sound_basis(basis, columns, protected):
    """Orthonormal and inside the null space, as many columns as there is room for; or none at all yet."""
    basis = np.asarray(basis, float)
    if np.any(basis != 0):
        expected = np.diag(np.arange(basis.shape[1]) < columns).astype(float)
        np.testing.assert_allclose(basis.T @ basis, expected, atol=1e-5)
        assert np.linalg.norm(protected.T @ basis, 2) < 1e-5


def bases_of(state, complementary):
    """``(basis [p, r], columns there is room for, protected directions)`` of every branch of every matrix."""
    nothing = np.zeros((1, 1))
    directions = {"tall": [null_space()[1]["tall"]], "stack": null_space()[1]["stack"], "free": [nothing]}
    for name, members in directions.items():
        shared, task = np.asarray(state.shared_basis[name]), np.asarray(state.task_basis[name])
        for j, k in enumerate(members):
            room = len(k) - k.shape[1] if name != "free" else 99
            yield shared[j], min(shared.shape[-1], room), k if name != "free" else np.zeros((len(shared[j]), 1))
            left = max(0, room - shared.shape[-1]) if complementary else room
            for t in range(TASKS):
                yield task[t, j], min(task.shape[-1], left), k if name != "free" else np.zeros((len(task[t, j]), 1))


def check_step(before, after, kinds, update, params, m, complementary):
    found = {name: np.asarray(x) for name, x in gj.diagnostics(after).items()}
    old = {name: np.asarray(x) for name, x in gj.diagnostics(before).items()}
    before, after = before[0], after[0]
    assert_finite((params, update, after))
    assert max(float(np.max(np.abs(u))) for u in jax.tree.leaves(update)) < 1
    assert_no_leak(update, m.null_space)
    for basis, columns, protected in bases_of(after, complementary):
        assert_sound_basis(basis, columns, protected)
    np.testing.assert_allclose(found["gates"].sum(), 1, rtol=1e-5)
    assert found["gates"].min() >= 0
    # Counters, and that tasks which are not there stay as they were.
    absent, skipped = (np.isin(kinds, names) for names in (ABSENT, SKIPPED))
    np.testing.assert_array_equal(found["absent"] - old["absent"], absent)
    np.testing.assert_array_equal(found["skipped"] - old["skipped"], skipped)
    for task in np.flatnonzero(absent | skipped):
        mine = lambda s: jax.tree.map(lambda x: np.asarray(x)[task], (s.task_basis, s.task_inner))  # noqa: B023, E731
        for a, b in zip(jax.tree.leaves(mine(before)), jax.tree.leaves(mine(after)), strict=True):
            np.testing.assert_array_equal(a, b)
    present = int(np.sum(~(absent | skipped)))
    np.testing.assert_allclose(found["weights"].sum(), present > 0, atol=1e-6)
    assert (found["update_norm"] > 0) == (present > 0)
    assert int(after.count) == int(before.count) + 1
    if set(kinds) == {"normal"}:
        assert found["waiting"] == 0  # whatever was missed is caught up
        # But for what had a gradient when it was due, of which nothing but rounding was in its null space.
        if found["failed"] == 0:
            assert all(np.any(basis != 0) for basis, columns, _ in bases_of(after, complementary) if columns)


def drive(name, sequence, dtype="float32"):
    m, complementary = machine(name, dtype), CONFIGURATIONS[name].get("complementary", False)
    params, state = m.params, m.state
    for i, kinds in enumerate(sequence):
        counts = np.float32([0 if kind == "no tokens" else 5 + t for t, kind in enumerate(kinds)])
        before = state
        params, state, update = m.step(gradients(i, kinds, dtype), state, params, np.ones(TASKS, np.float32), counts)
        check_step(before, state, kinds, update, params, m, complementary)
    assert m.step._cache_size() == 1
    return params, state


def sequences(kinds=KINDS):
    """Mostly well-behaved, so that there is something to break; a healthy step at the end."""
    kind = st.one_of(st.just("normal"), st.sampled_from(kinds))
    steps = st.lists(st.tuples(*[kind] * TASKS), min_size=STEPS - 1, max_size=STEPS - 1)
    return steps.map(lambda rows: [*rows, ("normal",) * TASKS])


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGURATIONS)
@FEW
@given(sequence=sequences())
def test_whatever_comes_state_and_updates_stay_sound(name, sequence):
    drive(name, sequence)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_all_tasks_at_once_from_the_first_step_over_a_refresh_and_again(name, kind):
    rows = [(kind,) * TASKS] * 4 + [("normal",) * TASKS] + [(kind,) * TASKS] * 2 + [("normal",) * TASKS]
    drive(name, rows)


def test_tasks_that_take_turns_have_each_their_own_steps():
    turns = [tuple("normal" if t == i % TASKS else "no tokens" for t in range(TASKS)) for i in range(STEPS)]
    _, state = drive("eigh", turns)
    taken = np.asarray(state[0].task_inner.count["tall"])[:, 0]
    np.testing.assert_array_equal(taken, [3, 3, 2])
    np.testing.assert_array_equal(gj.diagnostics(state)["absent"], [5, 5, 6])
    np.testing.assert_array_equal(np.asarray(state[0].shared_inner.count["tall"]), [STEPS])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::gems_jax.null_space.few_bits.FewBitsWarning")
@FEW
@given(sequence=sequences(("normal", "zero", "nan", "constant", "rank one")))
def test_bfloat16_parameters_and_gradients_stand_it_too(sequence):
    params, state = drive("eigh", sequence, "bfloat16")
    assert {p.dtype for p in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}
    assert all(x.dtype != jnp.bfloat16 for x in jax.tree.leaves(state))


@pytest.mark.slow
@FEW
@given(
    order=st.permutations(range(TASKS)),
    sequence=st.lists(
        st.tuples(*[st.sampled_from(["normal", "normal", "zero", "nan"])] * TASKS), min_size=5, max_size=5
    ),
)
def test_the_order_of_the_tasks_is_of_no_consequence(order, sequence):
    m = machine("eigh")
    ends = []
    for perm in (list(range(TASKS)), list(order)):
        params, state = m.params, m.state
        for i, kinds in enumerate(sequence):
            grads = {name: g[np.array(perm)] for name, g in gradients(i, kinds).items()}
            pick = lambda x: np.float32(x)[np.array(perm)]  # noqa: B023, E731
            params, state, _ = m.step(grads, state, params, pick([1.0, 2.0, 5.0]), pick([5.0, 6.0, 7.0]))
        ends.append((params, state[0], gj.diagnostics(state)))
    (params, state, seen), (other, permuted, again) = ends
    moved = lambda p: jax.tree.map(lambda a, b: a - b, p, m.params)  # noqa: E731
    if optax.tree.norm(moved(params)) > 0:
        assert difference(moved(other), moved(params)) < 1e-3
    np.testing.assert_allclose(again["gates"], seen["gates"][np.array(order)], rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(again["skipped"], seen["skipped"][np.array(order)])
    for name in ("tall", "stack"):
        np.testing.assert_allclose(permuted.task_basis[name], state.task_basis[name][np.array(order)], atol=1e-3)


@pytest.mark.parametrize("what", ["merged leaf", "shared gradient"])
def test_a_step_skipped_for_a_merged_leaf_or_shared_gradient_is_counted(what):
    shapes = {"w": (8, 6), "bias": (6,)}
    params, tx = make_params(shapes), gj.gems(1e-2, num_tasks=2, rank=3, weight_decay=0.1)

    def grads_of(i):
        grads = make_grads(i, shapes=shapes)
        if what == "merged leaf":
            grads["bias"] = grads["bias"][:1] * (np.nan if i == 1 else 1)
        return grads

    own = lambda i: {n: g.mean(0) * (np.nan if i == 1 else 1) for n, g in make_grads(i, shapes=shapes).items()}  # noqa: E731
    extra = {"shared_grads": own} if what == "shared gradient" else {}
    new, state, seen = run(tx, params, grads_of, 3, task_losses=LOSSES, **extra)
    assert_finite((new, state))
    assert optax.tree.norm(seen[1]) == 0
    assert min(float(np.max(np.abs(u))) for u in jax.tree.leaves((seen[0], seen[2]))) > 0
    assert np.asarray(gj.diagnostics(state)["skipped"]).tolist() == [1, 1]


def test_matrices_without_room_do_not_wait():
    """What waits has its stack decomposed at every step; where the null space is empty there is nothing to wait for."""
    moments = np.stack([(k := orthonormal(8, kept, kept)) @ k.T for kept in (2, 8)])
    ns = gj.NullSpace.from_moments({"stack": moments}, energy=1 - 1e-9)
    assert ns.factor("stack").kept.tolist() == [2, 8]
    shapes = {"stack": (2, 8, 6)}
    tx = gj.gems(1e-2, num_tasks=2, rank=3, refresh_every=2, null_space=ns, matrix_dims=RULE)
    params = make_params(shapes)
    new, state, seen = run(tx, params, lambda i: make_grads(i, shapes=shapes), 4)
    np.testing.assert_array_equal(new["stack"][1], params["stack"][1])
    assert all(np.max(np.abs(u["stack"][0])) > 1e-3 for u in seen)
    assert int(gj.diagnostics(state)["waiting"]) == 0


def test_gradients_of_low_rank_move_nothing_but_their_own_directions():
    """Surplus columns of a basis meet rounding errors alone, which Adam would blow up to full steps."""
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=(24, 1)), rng.normal(size=(1, 32))
    ns, _ = make_null_space({"w": 24})
    k = np.asarray(ns.factor("w").basis, float)
    inside = left - k @ (k.T @ left)
    inside /= np.linalg.norm(inside)
    tx = gj.scale_by_gems(num_tasks=1, rank=8, null_space=ns, side="in", decomposition="eigh")
    same = {"w": (left * right)[None].astype(np.float32)}
    _, _, seen = run(tx, make_params({"w": (24, 32)}), lambda i: same, 3)
    for update in seen:
        stray = update["w"] - inside @ (inside.T @ update["w"])
        assert np.linalg.norm(stray) < 1e-2 * np.linalg.norm(update["w"])
