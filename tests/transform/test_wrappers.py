"""Accumulation equals the large batch; steps that are not finite are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import difference, make_grads, make_params, run

import gems_jax as gj

SHAPES = {"w": (8, 6), "bias": (6,)}
PARAMS = jax.tree.map(jnp.asarray, make_params(SHAPES))


def loss_fn(params, batch):
    losses = jnp.sum((batch["x"] @ params["w"] + params["bias"] - batch["y"]) ** 2, axis=-1)
    return gj.token_mean(losses, batch["mask"])


def make_batch(rows, seed, num_tasks=2):
    rng = np.random.default_rng(seed)
    shape = (num_tasks, rows)
    return {
        "x": jnp.asarray(rng.normal(size=(*shape, 8)), jnp.float32),
        "y": jnp.asarray(rng.normal(size=(*shape, 6)), jnp.float32),
        "mask": jnp.asarray(rng.random(shape) < [[0.9], [0.4]], jnp.float32),
    }


def micro_batches(batch, k):
    split = {name: jnp.split(x, k, axis=1) for name, x in batch.items()}
    return [{name: parts[j] for name, parts in split.items()} for j in range(k)]


def train(tx, batches, params=PARAMS):
    fn = gj.task_value_and_grad(loss_fn)

    def step(params, state, batch):
        losses, grads = fn(params, batch)
        counts = jnp.sum(batch["mask"], axis=1)
        updates, state = tx.update(grads, state, params, task_losses=losses, task_counts=counts)
        return optax.apply_updates(params, updates), state, updates

    step, seen = jax.jit(step), []
    state = jax.jit(tx.init)(params)
    for batch in batches:
        params, state, updates = step(params, state, batch)
        seen.append(updates)
    assert step._cache_size() == 1
    return params, state, seen


@pytest.mark.slow
def test_accumulated_micro_batches_equal_one_batch_of_all_their_rows():
    large = [make_batch(24, seed) for seed in range(3)]
    small = [part for batch in large for part in micro_batches(batch, 3)]
    tx = gj.gems(1e-2, num_tasks=2, rank=3, refresh_every=2, weight_decay=0.1)
    expected, plain_state, _ = train(tx, large)
    found, state, seen = train(gj.accumulate(tx, 3), small)
    moved = lambda new: jax.tree.map(lambda a, b: a - b, new, PARAMS)  # noqa: E731
    assert difference(moved(found), moved(expected)) < 1e-3
    assert [float(optax.tree.norm(u)) > 0 for u in seen] == [False, False, True] * 3
    assert int(state.inner[0].count) == 3  # refreshes count updates
    np.testing.assert_allclose(gj.diagnostics(state)["gates"], gj.diagnostics(plain_state)["gates"], rtol=1e-4)
    assert int(state.micro_step) == 0


@pytest.mark.slow
def test_a_task_without_tokens_in_some_micro_batches_is_weighted_by_those_it_has():
    large = make_batch(16, 0)
    large["mask"] = large["mask"].at[1, :8].set(0)
    small = micro_batches(large, 2)
    tx = gj.gems(1e-2, num_tasks=2, rank=3)
    expected, *_ = train(tx, [large])
    found, *_ = train(gj.accumulate(tx, 2), small)
    assert difference(found, expected) < 1e-5


def test_accumulation_of_merged_leaves_and_of_plain_transforms():
    tx = gj.accumulate(optax.chain(gj.merge_tasks(), optax.sgd(1.0)), 2, num_tasks=2)
    merged = lambda i: {n: g[:1] for n, g in make_grads(i, shapes=SHAPES).items()}  # noqa: E731
    _, _, seen = run(tx, PARAMS, merged, 2, task_counts=lambda i: jnp.asarray([1.0, 1.0 + 2 * i]))
    expected = {n: -(2 * merged(0)[n][0] + 4 * merged(1)[n][0]) / 6 for n in SHAPES}
    assert difference(seen[1], expected) < 1e-5


def test_accumulation_says_what_it_needs():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        gj.accumulate(gj.gems(1e-3, num_tasks=2), 0)
    with pytest.raises(ValueError, match="num_tasks="):
        gj.accumulate(optax.sgd(1.0), 2).init(PARAMS)
    tx = gj.accumulate(gj.gems(1e-3, num_tasks=2, rank=2), 2)
    grads = make_grads(0, shapes=SHAPES)
    with pytest.raises(ValueError, match="gradient leaf 'w' has shape"):
        tx.update(grads | {"w": grads["w"][0]}, tx.init(PARAMS), PARAMS)
    with pytest.raises(ValueError, match="shared_grads cannot be accumulated"):
        tx.update(grads, tx.init(PARAMS), PARAMS, shared_grads=PARAMS)
    with pytest.raises(ValueError, match="needs the parameters"):
        tx.update(grads, tx.init(PARAMS))


def test_steps_that_are_not_finite_are_refused_until_there_are_too_many():
    tx = gj.apply_if_finite(gj.gems(1e-2, num_tasks=2, rank=3), 2)

    def grads_of(i):
        grads = make_grads(i, shapes=SHAPES)
        if i in (1, 3, 4, 5):
            grads["bias"][0] = np.nan
        return grads

    states, params, state = [], PARAMS, tx.init(PARAMS)
    step = jax.jit(lambda g, s, p: tx.update(g, s, p))
    for i in range(7):
        updates, state = step(grads_of(i), state, params)
        states.append((float(optax.tree.norm(updates)) > 0, int(state.consecutive), int(state.inner[0].count)))
    assert states == [
        (True, 0, 1),
        (False, 1, 1),
        (True, 0, 2),
        (False, 1, 2),
        (False, 2, 2),
        (True, 3, 3),  # one too many: let through, and gems leaves out the broken task by itself
        (True, 0, 4),
    ]
    assert int(state.total) == 4
    assert bool(state.last_finite)
    with pytest.raises(ValueError, match="at least 0"):
        gj.apply_if_finite(tx, -1)


def test_a_nan_in_one_micro_batch_leaves_out_that_task_for_one_update_only():
    tx = gj.accumulate(gj.gems(1e-2, num_tasks=2, rank=3), 2)

    def grads_of(i):
        grads = make_grads(i, shapes=SHAPES)
        if i == 0:
            grads["w"][0] = np.nan
        return grads

    new, state, seen = run(tx, PARAMS, grads_of, 4)
    assert np.asarray(gj.diagnostics(state)["skipped"]).tolist() == [1, 0]
    assert all(np.all(np.isfinite(p)) for p in new.values())
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(state))
