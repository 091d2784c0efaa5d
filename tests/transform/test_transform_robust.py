"""Any number of tasks, absent tasks, gradients that are merged, poor, broken or in bfloat16."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import LOSSES, assert_no_leak, difference, make_grads, make_null_space, make_params, run

import gems_jax as gj
from gems_jax.null_space.few_bits import FewBitsWarning

SHAPES = {"w": (8, 6), "bias": (6,)}


@pytest.mark.slow
@pytest.mark.parametrize("num_tasks", [1, 3, 8])
def test_any_number_of_tasks_keeps_the_constraint_and_gates_that_sum_to_one(num_tasks):
    ns, _ = make_null_space({"w": 8})
    tx = gj.gems(1e-2, num_tasks=num_tasks, rank=4, null_space=ns, refresh_every=2)
    _, state, seen = run(tx, make_params(SHAPES), lambda i: make_grads(i, num_tasks, SHAPES), 3)
    assert_no_leak(seen[-1], ns)
    gates = gj.diagnostics(state)["gates"]
    assert gates.shape == (num_tasks,)
    np.testing.assert_allclose(jnp.sum(gates), 1, rtol=1e-6)
    assert state.__class__ is tuple
    assert state[0].task_basis["w"].shape == (num_tasks, 1, 8, 2)


@pytest.mark.slow
def test_permuting_the_tasks_permutes_their_state_and_leaves_the_update_alone():
    order = np.array([2, 0, 1])
    losses, counts = np.array([1.0, 2.0, 5.0], np.float32), np.array([10.0, 40.0, 7.0], np.float32)
    tx = gj.scale_by_gems(num_tasks=3, rank=3, refresh_every=2)
    params = make_params(SHAPES)
    grads_of = lambda i: make_grads(i, 3, SHAPES)  # noqa: E731
    permuted = lambda i: {n: g[order] for n, g in grads_of(i).items()}  # noqa: E731
    _, state, seen = run(tx, params, grads_of, 3, task_losses=losses, task_counts=counts)
    _, other, again = run(tx, params, permuted, 3, task_losses=losses[order], task_counts=counts[order])
    assert difference(again, seen) < 1e-4
    np.testing.assert_allclose(other.diagnostics.gates, state.diagnostics.gates[order], rtol=1e-5)
    np.testing.assert_allclose(other.task_basis["w"], state.task_basis["w"][order], atol=1e-4)
    np.testing.assert_allclose(other.task_inner.nu["w"], state.task_inner.nu["w"][order], rtol=1e-3, atol=1e-6)


def test_cosines_show_agreement_and_conflict():
    g = make_grads(0, 1, SHAPES)
    grads = {n: np.concatenate([x, 2 * x, -x]) for n, x in g.items()}
    tx = gj.scale_by_gems(num_tasks=3, rank=2)
    _, state, _ = run(tx, make_params(SHAPES), lambda i: grads, 1)
    found = gj.diagnostics(state)
    np.testing.assert_allclose(found["cosines"], [[1, 1, -1], [1, 1, -1], [-1, -1, 1]], atol=1e-5)
    size = np.sqrt(sum((x**2).sum() for x in g.values()))
    np.testing.assert_allclose(found["grad_norms"], size * np.array([1, 2, 1]), rtol=1e-5)


# --- one compiled step, many kinds of gradients ---------------------------------------------------------------


@functools.cache
def machine():
    ns, _ = make_null_space({"w": 8})
    tx = gj.gems(1e-2, num_tasks=2, rank=3, refresh_every=3, null_space=ns, weight_decay=0.1)
    params = jax.tree.map(jnp.asarray, make_params(SHAPES))

    def step(grads, state, params, losses, counts):
        updates, state = tx.update(grads, state, params, task_losses=losses, task_counts=counts)
        return optax.apply_updates(params, updates), state, updates

    return ns, tx.init(params), params, jax.jit(step)


def drive(grads_of, steps=7, counts_of=lambda i: [8.0, 8.0], losses_of=lambda i: [1.0, 2.0]):
    _, state, params, step = machine()
    states, updates = [], []
    for i in range(steps):
        params, state, update = step(grads_of(i), state, params, jnp.asarray(losses_of(i)), jnp.asarray(counts_of(i)))
        states.append(state[0])
        updates.append(update)
    return params, states, updates


def assert_all_finite(tree):
    for leaf in jax.tree.leaves(tree):
        assert np.all(np.isfinite(np.asarray(leaf, float)))


def broken(kind, step, task):
    grads = make_grads(step, shapes=SHAPES)
    rng = np.random.default_rng(step)
    for name, g in grads.items():
        if kind == "nan":
            g[task][..., 3] = np.nan
        elif kind == "infinite":
            g[task][..., 3] = np.inf
        elif kind == "zero":
            g[task] = 0
        elif kind == "subnormal":
            g[task] *= 1e-41
        elif kind == "tiny":
            g[task] *= 1e-15
        elif kind == "huge":
            g[task] *= 1e16
        elif kind == "rank one" and name == "w":
            g[task] = rng.normal(size=(8, 1)) * rng.normal(size=(1, 6))
        elif kind == "constant":
            g[task] = 1.0
    return grads


KINDS = ["nan", "infinite", "zero", "subnormal", "tiny", "huge", "rank one", "constant"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("when", [(0, 1), (3,), (4, 5)], ids=["first steps", "a refresh", "between"])
def test_no_gradient_of_one_task_breaks_anything(kind, when):
    ns, *_ = machine()
    params, states, updates = drive(lambda i: broken(kind if i in when else "", i, 0))
    assert_all_finite((params, states, updates))
    for update in updates:
        assert_no_leak(update, ns)
        assert np.max(np.abs(update["w"])) > 1e-5  # the other task goes on
    for state in states:
        np.testing.assert_allclose(jnp.sum(state.diagnostics.gates), 1, rtol=1e-5)
    # After everything is well again each basis is orthonormal.
    for basis in (states[-1].shared_basis["w"][0], *states[-1].task_basis["w"][:, 0]):
        np.testing.assert_allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-5)
    assert int(states[-1].diagnostics.skipped[0]) == (len(when) if kind in ("nan", "infinite") else 0)


@pytest.mark.parametrize("method", ["gems", "merged", "shared"])
def test_one_entry_of_a_large_gradient_that_is_not_a_number_is_seen(method):
    """XLA's maximum on CPU drops it from 4,096 entries on."""
    grads = make_grads(0, 2, {"w": (64, 64)})
    good, bad = grads["w"], grads["w"].copy()
    bad[1, 40, 50] = np.nan
    tx = gj.scale_by_gems(num_tasks=2, rank=4)
    params = make_params({"w": (64, 64)})
    shared = {"shared_grads": {"w": bad[1]}} if method == "shared" else {}
    sent = {"gems": bad, "merged": bad[1:], "shared": good}[method]
    update, state = jax.jit(tx.update)({"w": sent}, tx.init(params), params, task_losses=jnp.ones(2), **shared)
    assert state.diagnostics.skipped.tolist() == ([0, 1] if method == "gems" else [1, 1])
    assert_all_finite((update, state))
    assert bool(jnp.any(update["w"] != 0)) == (method == "gems")


@pytest.mark.parametrize("kind", ["nan", "zero", "subnormal"])
def test_a_step_without_any_usable_gradient_changes_nothing_but_the_count(kind):
    both = lambda i: broken(kind, i, slice(None)) if i == 4 else make_grads(i, shapes=SHAPES)  # noqa: E731
    _, states, updates = drive(both, 6)
    assert max(float(np.max(np.abs(u))) for u in jax.tree.leaves(updates[4])) == 0
    same = lambda s: s._replace(count=0, diagnostics=0, pending=0)  # noqa: E731
    for old, new in zip(jax.tree.leaves(same(states[3])), jax.tree.leaves(same(states[4])), strict=True):
        np.testing.assert_array_equal(old, new)
    assert max(float(np.max(np.abs(u))) for u in jax.tree.leaves(updates[5])) > 0


def test_a_basis_is_never_replaced_by_noise_and_the_branch_catches_up_later():
    for kind in ("nan", "zero"):
        _, states, _ = drive(lambda i: broken(kind if i in (3, 4) else "", i, 1), 6)  # noqa: B023
        basis = [np.asarray(s.task_basis["w"]) for s in states]
        np.testing.assert_array_equal(basis[3][1], basis[2][1])  # its refresh at step 3 is missed
        assert np.any(basis[3][0] != basis[2][0])
        np.testing.assert_array_equal(basis[4][1], basis[2][1])
        assert np.any(basis[5][1] != basis[4][1])  # caught up
        assert [int(s.diagnostics.waiting) for s in states] == [0, 0, 0, 1, 1, 0]


def test_a_task_without_tokens_when_its_refresh_is_due_refreshes_at_its_next_step():
    """Also where its gradient is none of its own: no tokens, no say."""
    counts = lambda i: [8.0, 0.0] if i in (3, 4) else [8.0, 8.0]  # noqa: E731
    _, states, _ = drive(lambda i: make_grads(i, shapes=SHAPES), 6, counts_of=counts)
    basis = [np.asarray(s.task_basis["w"]) for s in states]
    changed = [[bool(np.any(new[t] != old[t])) for t in (0, 1)] for old, new in zip(basis[:-1], basis[1:], strict=True)]
    assert changed == [[False, False], [False, False], [True, False], [False, False], [False, True]]
    assert [int(s.diagnostics.waiting) for s in states] == [0, 0, 0, 1, 1, 0]
    assert [int(s.diagnostics.refreshed) for s in states] == [3, 0, 0, 2, 0, 1]


def test_a_task_absent_at_first_gets_its_basis_when_it_comes():
    _, states, _ = drive(lambda i: broken("zero" if i in (0, 1) else "", i, 1), 3)
    assert [int(s.diagnostics.waiting) for s in states] == [1, 1, 0]
    assert [int(s.diagnostics.refreshed) for s in states] == [2, 0, 1]
    assert np.all(np.asarray(states[1].task_basis["w"][1]) == 0)
    assert int(states[2].task_inner.count["w"][1, 0]) == 1


def test_a_task_absent_for_a_while_is_frozen_and_counted():
    absent = lambda i: [8.0, 0.0] if i in (1, 2) else [8.0, 8.0]  # noqa: E731
    _, states, _ = drive(lambda i: broken("zero" if i in (1, 2) else "", i, 1), 4, counts_of=absent)
    for i in (1, 2):
        np.testing.assert_array_equal(states[i].task_inner.mu["w"][1], states[0].task_inner.mu["w"][1])
        assert np.any(states[i].task_inner.mu["w"][0] != states[0].task_inner.mu["w"][0])
        assert int(states[i].task_inner.count["w"][1, 0]) == 1
    assert np.asarray(states[3].diagnostics.absent).tolist() == [0, 2]
    assert np.asarray(states[1].diagnostics.weights).tolist() == [1.0, 0.0]


def test_losses_that_are_not_finite_do_not_reach_the_gates():
    _, states, updates = drive(lambda i: make_grads(i, shapes=SHAPES), 2, losses_of=lambda i: [np.nan, 1.0])
    assert_all_finite((states, updates))
    np.testing.assert_allclose(jnp.sum(states[-1].diagnostics.gates), 1, rtol=1e-5)


# --- merged gradients, the caller's own shared gradient -------------------------------------------------------


@pytest.mark.slow
def test_leaves_merged_already_serve_the_shared_branch_and_the_fallback_alone():
    mean = lambda i: {n: g.mean(axis=0, keepdims=True) for n, g in make_grads(i, shapes=SHAPES).items()}  # noqa: E731
    tx = gj.scale_by_gems(num_tasks=2, rank=3)
    without = gj.scale_by_gems(num_tasks=2, rank=3, task_rank=0)
    params = make_params(SHAPES)
    _, state, seen = run(tx, params, mean, 2)
    _, _, expected = run(without, params, lambda i: make_grads(i, shapes=SHAPES), 2)
    assert difference(seen, expected) < 1e-5
    assert int(state.diagnostics.waiting) == 2
    only_bias = lambda i: make_grads(i, shapes=SHAPES) | {"bias": mean(i)["bias"]}  # noqa: E731
    _, _, seen = run(tx, params, only_bias, 2)
    _, _, expected = run(tx, params, lambda i: make_grads(i, shapes=SHAPES), 2)
    np.testing.assert_allclose(seen[-1]["bias"], expected[-1]["bias"], rtol=1e-5)


@pytest.mark.slow
def test_merged_and_stacked_kernels_of_one_shape_are_told_apart():
    shapes = {"a": (8, 6), "b": (8, 6)}
    grads_of = lambda i: make_grads(i, shapes=shapes)  # noqa: E731
    mixed = lambda i: grads_of(i) | {"b": grads_of(i)["b"].mean(axis=0, keepdims=True)}  # noqa: E731
    tx = gj.scale_by_gems(num_tasks=2, rank=3, gate=gj.gates.constant([1, 1]))
    params = make_params(shapes)
    _, _, all_stacked = run(tx, params, grads_of, 2)
    _, _, some = run(tx, params, mixed, 2)
    np.testing.assert_allclose(some[-1]["a"], all_stacked[-1]["a"], atol=1e-6)
    assert np.max(np.abs(some[-1]["b"] - all_stacked[-1]["b"])) > 1e-3


@pytest.mark.slow
def test_a_shared_gradient_of_the_callers_own_replaces_the_weighted_sum():
    tx = gj.scale_by_gems(num_tasks=2, rank=3)
    params = make_params(SHAPES)
    grads_of = lambda i: make_grads(i, shapes=SHAPES)  # noqa: E731
    weighted = lambda i: {n: 0.8 * g[0] + 0.2 * g[1] for n, g in grads_of(i).items()}  # noqa: E731
    other = lambda i: {n: g[0] for n, g in grads_of(i).items()}  # noqa: E731
    gate = {"task_losses": LOSSES}
    _, _, plain = run(tx, params, grads_of, 2, **gate)
    mean = lambda i: {n: g.mean(0) for n, g in grads_of(i).items()}  # noqa: E731
    _, _, equal = run(tx, params, grads_of, 2, shared_grads=mean, **gate)
    assert difference(equal, plain) < 1e-5
    _, _, first = run(tx, params, grads_of, 2, shared_grads=other, **gate)
    _, _, second = run(tx, params, grads_of, 2, shared_grads=weighted, **gate)
    assert difference(first, plain) > 1e-2
    assert difference(second, first) > 1e-3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::gems_jax.null_space.few_bits.FewBitsWarning")
def test_bfloat16_parameters_and_gradients_keep_float32_state_and_updates():
    ns, _ = make_null_space({"w": 8})
    tx = gj.gems(1e-2, num_tasks=2, rank=3, null_space=ns, weight_decay=0.1, refresh_every=2)
    params = jax.tree.map(lambda p: jnp.asarray(p, jnp.bfloat16), make_params(SHAPES))
    with pytest.warns(FewBitsWarning, match="'w' is bfloat16"):
        start = jax.tree.map(lambda x: (x.shape, str(x.dtype)), tx.init(params))
    half = lambda i: jax.tree.map(lambda g: jnp.asarray(g, jnp.bfloat16), make_grads(i, shapes=SHAPES))  # noqa: E731
    new, state, seen = run(tx, params, half, 3)
    assert jax.tree.map(lambda x: (x.shape, str(x.dtype)), state) == start
    assert not any(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(state))
    assert all(u.dtype == np.float32 for updates in seen for u in updates.values())
    assert all(p.dtype == jnp.bfloat16 for p in new.values())
    for updates in seen:
        assert_no_leak(updates, ns)
    exact = jax.tree.map(lambda p: p.astype(jnp.float32), params)
    full = lambda i: jax.tree.map(lambda g: g.astype(jnp.float32), half(i))  # noqa: E731
    _, _, expected = run(tx, exact, full, 1)
    assert difference(seen[0], expected[0]) < 1e-5


@pytest.mark.slow
def test_what_surrounds_it_follows_float64_and_float32_parameters_keep_float32_state_beside_it():
    with jax.enable_x64(True):
        ns, protected = make_null_space({"w": 8})
        params = make_params(SHAPES, dtype=np.float64)
        tx = gj.accumulate(gj.scale_by_gems(num_tasks=2, rank=3, null_space=ns, gate=gj.gates.learned(hidden=4)), 1)
        state = jax.eval_shape(tx.init, params)
        assert {str(x.dtype) for x in jax.tree.leaves(state)} == {"float64", "int32", "bool"}
        single = jax.eval_shape(tx.init, make_params(SHAPES))
        assert {str(x.dtype) for x in jax.tree.leaves(single)} == {"float32", "int32", "bool"}
        grads, counts = make_grads(0, shapes=SHAPES, dtype=np.float64), np.array([1.0, 2.0])
        for merging in (gj.merge_tasks(), gj.baselines.joint(optax.identity())):
            merged, _ = merging.update(grads, merging.init(params), params, task_counts=counts)
            np.testing.assert_allclose(merged["w"], np.tensordot(counts / 3, grads["w"], 1), rtol=1e-13, atol=1e-14)
        projected, _ = gj.constrain_to_null_space(ns).update(params, gj.constrain_to_null_space(ns).init(params))
        exact = params["w"] - protected["w"] @ (protected["w"].T @ params["w"])
        np.testing.assert_allclose(projected["w"], exact, atol=1e-13)


def test_a_null_space_estimated_in_float64_is_that_of_the_float64_moments():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x, w = rng.normal(size=(64, 6)) * np.arange(1, 7), jnp.asarray(rng.normal(size=(6, 4)))
        model = lambda params, x: x @ params["w"]  # noqa: E731
        ns = gj.estimate_null_space(model, [{"x": jnp.asarray(x)}], rank=3, params={"w": w}, progress=False)
        k, exact = ns.factor("w").basis, np.linalg.eigh(x.T @ x)[1][:, 3:]
        assert k.dtype == np.float64
        np.testing.assert_allclose(k @ k.T, exact @ exact.T, atol=1e-13)
        moment = gj.SecondMoment.zeros(6).update(jnp.asarray(x)).matrix()
        np.testing.assert_allclose(moment, x.T @ x / 64, rtol=1e-13)
        assert gj.SecondMoment.zeros(6).update(jnp.asarray(x, jnp.bfloat16)).total.dtype == jnp.float32


@pytest.mark.slow
def test_numpys_float64_is_taken_as_the_float32_that_jax_makes_of_it():
    shapes = {"w": (8, 4)}
    params, grads = make_params(shapes), make_grads(0, shapes=shapes)
    wide, wide_grads = (jax.tree.map(lambda x: np.asarray(x, np.float64), tree) for tree in (params, grads))
    ns, _ = make_null_space({"w": 8})
    steps = [
        gj.scale_by_gems(num_tasks=2, rank=3, null_space=ns),
        optax.chain(gj.baselines.joint(optax.identity()), gj.constrain_to_null_space(ns)),
        gj.merge_tasks(),
    ]
    for tx in steps:
        (updates, state), (expected, _) = (
            tx.update(gradient, tx.init(given), given) for gradient, given in ((wide_grads, wide), (grads, params))
        )
        assert not any(x.dtype == np.float64 for x in jax.tree.leaves((updates, state)))
        assert difference(updates, expected) < 1e-6
