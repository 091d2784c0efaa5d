"""Steps on projected gradients are those on whole ones: of the transform, of a trainer's step, over a refresh."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import assert_no_leak, make_null_space, orthonormal

import gems_jax as gj

TASKS, ROWS = 2, 24
SHAPES = {"a": (10, 14), "b": (14, 10)}


def params_of(dtype=jnp.float32):
    rng = np.random.default_rng(0)
    return {name: jnp.asarray(0.4 * rng.normal(size=shape), dtype) for name, shape in SHAPES.items()}


def loss(params, batch):
    x = batch["x"].astype(params["a"].dtype)
    return jnp.sum(batch["weight"] * jnp.mean(jnp.square(jnp.tanh(x @ params["a"]) @ params["b"] - jnp.sin(x)), -1))


def batch_at(step, absent=False):
    rng = np.random.default_rng(step)
    weight = np.full((TASKS, ROWS), 1 / ROWS, np.float32)
    if absent:
        weight[1] = 0
    return {"x": jnp.asarray(rng.normal(size=(TASKS, ROWS, 10)), jnp.float32), "weight": jnp.asarray(weight)}


def step_of(tx, projected):
    fn = gj.projected_task_grads(loss, tx) if projected else None
    whole = gj.task_value_and_grad(loss)

    def step(params, state, batch, counts):
        losses, grads = fn(params, state, batch, task_counts=counts) if fn else whole(params, batch)
        updates, state = tx.update(grads, state, params, task_losses=losses, task_counts=counts)
        return optax.apply_updates(params, updates), state, updates

    return jax.jit(step)


# Outside a null space: in float64, below.
OPTIONS = {
    "protected": {},
    "spans outputs, decay": {"side": "out", "weight_decay": 0.1},
    "no task bases": {"task_rank": 0},
    "moments reset, aligned": {"moments": "reset", "signs": "align"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_each_step_from_one_state_is_that_on_whole_gradients(name):
    null_space = make_null_space({"a": 10, "b": 14})[0]
    # Gates by numbers that both ways know exactly: norms of whole gradients are estimated.
    gate = gj.gates.heuristic(loss=0.5, grad_norm=0.0, count=0.5)
    options = {"rank": 3, "refresh_every": 3, "decomposition": "subspace", "gate": gate, "null_space": null_space}
    tx = gj.gems(1e-2, num_tasks=TASKS, **options | OPTIONS[name])
    params, state = params_of(), tx.init(params_of())
    projected, whole = step_of(tx, True), step_of(tx, False)
    counts = jnp.asarray([30.0, 10.0])
    for i in range(7):
        moved, after, updates = projected(params, state, batch_at(i), counts)
        _, expected, right = whole(params, state, batch_at(i), counts)
        if i:  # the first bases come of another number of sweeps
            for got, want in zip(jax.tree.leaves(updates), jax.tree.leaves(right), strict=True):
                assert np.max(np.abs(got - want)) < 1e-5 * np.max(np.abs(want)), i
        assert int(gj.diagnostics(after)["refreshed"]) == int(gj.diagnostics(expected)["refreshed"])
        assert_no_leak(updates, null_space)
        params, state = moved, after
    assert projected._cache_size() == 1


@pytest.mark.slow
def test_in_float64_steps_agree_to_ten_digits():
    with jax.enable_x64(True):
        gate = gj.gates.heuristic(loss=0.5, grad_norm=0.0, count=0.5)
        tx = gj.gems(1e-2, num_tasks=TASKS, rank=3, refresh_every=2, decomposition="subspace", gate=gate)
        params = params_of(jnp.float64)
        state = tx.init(params)
        projected, whole = step_of(tx, True), step_of(tx, False)
        for i in range(4):
            moved, after, updates = projected(params, state, batch_at(i), jnp.ones(2))
            right = whole(params, state, batch_at(i), jnp.ones(2))[2]
            if i:
                for got, want in zip(jax.tree.leaves(updates), jax.tree.leaves(right), strict=True):
                    assert np.max(np.abs(got - want)) < 1e-10 * np.max(np.abs(want)), i
            params, state = moved, after


@pytest.mark.parametrize("before", [optax.scale(0.5), optax.clip(1.0), optax.sgd(1.0), optax.scale_by_sign()])
def test_a_transform_in_front_of_gems_that_would_change_the_bases_is_refused(before):
    tx = optax.chain(before, gj.gems(1e-2, num_tasks=TASKS, rank=3))
    params = params_of()

    def step(state):
        _, grads = gj.projected_task_grads(loss, tx)(params, state, batch_at(0))
        return tx.update(grads, state, params)

    with pytest.raises((ValueError, TypeError), match="was changed on its way to gems|sign does not accept dtype bool"):
        jax.eval_shape(step, tx.init(params))


@pytest.mark.slow
def test_a_batch_in_parts_gives_the_step_of_accumulated_whole_gradients():
    null_space, gate = make_null_space({"a": 10, "b": 14})[0], gj.gates.heuristic(loss=0.5, grad_norm=0.0, count=0.5)
    options = {"rank": 3, "refresh_every": 3, "decomposition": "subspace", "gate": gate, "null_space": null_space}
    tx = gj.gems(1e-2, num_tasks=TASKS, **options)
    whole_tx = gj.accumulate(tx, 3)
    params, state = params_of(), tx.init(params_of())
    fn = gj.projected_task_grads(loss, tx, accumulate=3)

    @jax.jit
    def projected(params, state, batch, counts):
        losses, grads = fn(params, state, batch, task_counts=counts)
        updates, state = tx.update(grads, state, params, task_losses=losses, task_counts=counts.sum(1))
        return losses, updates, state

    whole = jax.jit(
        lambda params, state, batch, counts: (
            lambda value: whole_tx.update(value[1], state, params, task_losses=value[0], task_counts=counts)
        )(gj.task_value_and_grad(loss)(params, batch))
    )
    counts = jnp.asarray([[30.0, 10.0, 20.0], [10.0, 0.0, 5.0]])
    for i in range(5):
        batch = jax.tree.map(lambda x: x.reshape(TASKS, 3, ROWS // 3, *x.shape[2:]), batch_at(i))
        # What has no tokens of a task may be anything.
        batch["x"] = batch["x"].at[1, 1].set(jnp.nan)
        gathered = whole_tx.init(params)._replace(inner=state)
        for part in range(3):
            right, gathered = whole(params, gathered, jax.tree.map(lambda x: x[:, part], batch), counts[:, part])  # noqa: B023
        losses, updates, state = projected(params, state, batch, counts)
        if i:  # the first bases come of another number of sweeps
            for got, want in zip(jax.tree.leaves(updates), jax.tree.leaves(right), strict=True):
                assert np.max(np.abs(got - want)) < 1e-5 * np.max(np.abs(want)), i
        by_part = jax.vmap(jax.vmap(loss, (None, 0)), (None, 0))(params, batch)
        expected = np.sum(np.where(counts > 0, counts * by_part, 0), 1) / counts.sum(1)
        np.testing.assert_allclose(losses, expected, rtol=1e-5)
        assert_no_leak(updates, null_space)
        params = optax.apply_updates(params, updates)
    assert projected._cache_size() == 1


def test_parts_that_do_not_fit_the_batch_are_refused_by_name():
    tx = gj.gems(1e-2, num_tasks=TASKS, rank=3)
    params = params_of()
    with pytest.raises(
        ValueError, match="accumulate is the number of parts of a batch, a whole number from 1 on, got 0"
    ):
        gj.projected_task_grads(loss, tx, accumulate=0)
    fn = gj.projected_task_grads(loss, tx, accumulate=2)
    with pytest.raises(ValueError, match=r"batch leaf '(x|weight)' has shape \[2, 24.*expected \[T, 2, ...\]"):
        fn(params, tx.init(params), batch_at(0))
    halves = jax.tree.map(lambda x: x.reshape(TASKS, 2, ROWS // 2, *x.shape[2:]), batch_at(0))
    with pytest.raises(ValueError, match=r"task_counts has shape \[2\], expected \[2, 2\]"):
        fn(params, tx.init(params), halves, task_counts=jnp.ones(2))


@pytest.mark.slow
def test_a_task_that_is_absent_waits_and_gets_its_bases_when_it_comes():
    tx = gj.gems(1e-2, num_tasks=TASKS, rank=3, refresh_every=100)
    params, state = params_of(), tx.init(params_of())
    step = step_of(tx, True)
    seen = []
    for i in range(3):
        params, state, _ = step(params, state, batch_at(i, absent=i == 0), jnp.asarray([1.0, float(i > 0)]))
        now = gj.diagnostics(state)
        seen.append((int(now["refreshed"]), int(now["waiting"]), int(now["absent"][1])))
    assert seen == [(4, 2, 1), (2, 0, 1), (0, 0, 1)]


@pytest.mark.slow
def test_norms_and_cosines_are_estimated_without_bias():
    tx = gj.gems(0.0, num_tasks=TASKS, rank=3, refresh_every=1000)
    params, state = params_of(), tx.init(params_of())
    step = step_of(tx, True)
    batch, counts, seen = batch_at(0), jnp.ones(2), []
    for _ in range(300):
        _, state, _ = step(params, state, batch, counts)
        now = gj.diagnostics(state)
        seen.append([*now["grad_norms"] ** 2, now["cosines"][0, 1] * now["grad_norms"][0] * now["grad_norms"][1]])
    grads = gj.task_value_and_grad(loss)(params, batch)[1]
    products = sum(np.einsum("sij,tij->st", g, g) for g in map(np.asarray, grads.values()))
    right = np.array([products[0, 0], products[1, 1], products[0, 1]])
    mean, error = np.mean(seen, 0), np.std(seen, 0) / np.sqrt(len(seen))
    assert np.all(np.abs(mean - right) < 4 * error)
    assert np.all(error < 0.05 * right[0])
    assert np.all(np.std(seen, 0)[:2] < 0.25 * right[:2])


@pytest.mark.slow
def test_a_gradient_that_is_not_finite_is_left_out_and_counted():
    tx = gj.gems(1e-2, num_tasks=TASKS, rank=3)
    params, state = params_of(), tx.init(params_of())
    step = step_of(tx, True)
    batch = batch_at(0)
    batch["x"] = batch["x"].at[1, 0, 0].set(jnp.nan)
    moved, state, _ = step(params, state, batch, jnp.ones(2))
    assert gj.diagnostics(state)["skipped"].tolist() == [0, 1]
    assert all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(moved))
    guarded = gj.apply_if_finite(tx, 3)
    moved, after, updates = step_of(guarded, True)(params, guarded.init(params), batch, jnp.ones(2))
    assert not any(np.any(np.asarray(x)) for x in jax.tree.leaves(updates))
    assert int(after.total) == 1


@pytest.mark.slow
def test_a_gradient_that_lies_in_protected_directions_gives_no_basis_and_moves_nothing():
    seen = orthonormal(10, 3, seed=5)
    protected = gj.NullSpace.from_moments({"a": seen @ seen.T}, rank=3)
    tx = gj.gems(1e-2, num_tasks=TASKS, rank=3, refresh_every=2, null_space=protected)
    params, state = params_of(), tx.init(params_of())
    step, found = step_of(tx, True), []
    for i in range(3):
        batch = batch_at(i)
        batch["x"] = batch["x"] @ jnp.asarray(seen @ seen.T, jnp.float32)
        moved, state, _ = step(params, state, batch, jnp.ones(2))
        assert np.array_equal(moved["a"], params["a"])
        assert not np.array_equal(moved["b"], params["b"])
        params = moved
        found.append((int(gj.diagnostics(state)["failed"]), int(gj.diagnostics(state)["refreshed"])))
    assert found == [(3, 3), (3, 0), (6, 3)]


@pytest.mark.slow
def test_layers_of_a_stack_keep_to_the_null_space_of_each(monkeypatch):
    layers = jnp.stack([params_of()["a"] @ params_of()["b"], params_of()["b"].T @ params_of()["a"].T])
    params = {"kernel": layers}
    moments = np.stack([np.diag(np.arange(10.0) < 3), np.diag(np.arange(10.0) > 6)]).astype(np.float32)
    null_space = gj.NullSpace.from_moments({"kernel": moments}, rank=3)

    def stacked_loss(params, x):
        return jnp.mean(jnp.square(jax.lax.scan(lambda y, w: (jnp.tanh(y @ w), None), x, params["kernel"])[0] - x))

    tx = gj.gems(1e-2, num_tasks=TASKS, rank=3, null_space=null_space, matrix_dims=lambda path, leaf: gj.MatrixDims())
    state = tx.init(params)
    # As on accelerators, which decompose a stack as one, too.
    for backend in ("cpu", "gpu"):
        with monkeypatch.context() as patch:
            patch.setattr(jax, "default_backend", lambda backend=backend: backend)
            losses, grads = jax.jit(gj.projected_task_grads(stacked_loss, tx))(params, state, batch_at(0)["x"])
            updates, after = jax.jit(tx.update)(grads, state, params, task_losses=losses)
        assert int(gj.diagnostics(after)["refreshed"]) == 6
        assert_no_leak(updates, null_space)
