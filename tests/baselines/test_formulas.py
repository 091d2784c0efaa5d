"""Each baseline against its closed form, or against float64 numpy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from merging import PARAMS, WITH_LOSSES, as_row, as_tree, compiled, jacobian, make, merged, weights_of
from problems import difference

from gems_jax import baselines, merge_tasks
from gems_jax.baselines.aligned_mtl import alignment
from gems_jax.baselines.pcgrad import projected

# --- joint and galore --------------------------------------------------------------------------------------------


def test_joint_is_merge_tasks_before_the_inner_transform():
    counts = jnp.asarray([3.0, 1.0, 4.0])
    ours, theirs = make("joint", 3, optax.adam(0.1)), optax.chain(merge_tasks(), optax.adam(0.1))
    state, other = ours.init(PARAMS), theirs.init(PARAMS)
    step = jax.jit(lambda g, s: ours.update(g, s, PARAMS, task_counts=counts))
    reference = jax.jit(lambda g, s: theirs.update(g, s, PARAMS, task_counts=counts))
    for seed in range(3):
        grads = as_tree(jacobian(3, seed))
        updates, state = step(grads, state)
        expected, other = reference(grads, other)
        assert difference(updates, expected) < 1e-6


@pytest.mark.parametrize("options", [{"rank": 2, "refresh_every": 2}, {"rank": 1, "scale": 0.5}], ids=str)
def test_galore_is_optax_s_on_the_mean_gradient(options):
    params = {"w": jnp.zeros((6, 4)), "b": jnp.zeros(3)}
    ours = baselines.galore(optax.sgd(1.0, momentum=0.9), **options)
    gap = {"update_proj_gap": options["refresh_every"]} if "refresh_every" in options else {}
    given = {k: v for k, v in options.items() if k != "refresh_every"} | gap
    theirs = optax.contrib.galore(1.0, base_optimizer=optax.trace(0.9), **given)
    state, other = ours.init(params), theirs.init(params)
    rng, counts = np.random.default_rng(0), jnp.asarray([1.0, 3.0])
    update = jax.jit(lambda g, s: ours.update(g, s, params, task_counts=counts))
    reference = jax.jit(theirs.update)
    for _ in range(3):
        grads = {k: jnp.asarray(rng.normal(size=(2, *p.shape)), jnp.float32) for k, p in params.items()}
        updates, state = update(grads, state)
        mean = jax.tree.map(lambda g: 0.25 * g[0] + 0.75 * g[1], grads)
        expected, other = reference(mean, other, params)
        assert difference(updates, expected) < 1e-4


def test_galore_says_that_its_inner_transform_cannot_see_parameters():
    tx = baselines.galore(optax.adamw(1e-3), rank=2)
    with pytest.raises(ValueError, match="cannot look at parameters, as weight decay.*add_decayed_weights"):
        jax.eval_shape(lambda g: tx.update(g, tx.init(PARAMS), PARAMS), as_tree(jacobian(2)))
    with pytest.raises(TypeError, match="rank=1.0: give a whole number of columns"):
        baselines.galore(optax.sgd(1.0), rank=1.0)
    with pytest.raises(ValueError, match="refresh_every is a number of steps, at least 1, got 0"):
        baselines.galore(optax.sgd(1.0), refresh_every=0)


# --- weights from losses -----------------------------------------------------------------------------------------


def test_uncertainty_starts_at_one_and_comes_to_rest_at_half_the_inverse_loss():
    rows, losses = jacobian(2), jnp.asarray([0.25, 2.0])
    assert np.allclose(merged("uncertainty", rows, losses), rows.sum(0), atol=1e-5)
    tx = make("uncertainty", 2, variance_tx=optax.sgd(0.2))
    update = jax.jit(lambda s: tx.update(as_tree(rows), s, PARAMS, task_losses=losses))
    state = tx.init(PARAMS)
    for _ in range(200):
        updates, state = update(state)
    np.testing.assert_allclose(weights_of(as_row(updates), rows), 1 / (2 * losses), rtol=1e-3)


@pytest.mark.slow
def test_uncertainty_trains_with_its_own_optimiser_and_keeps_what_an_absent_task_has():
    tx = make("uncertainty", 2)
    state, s, mu, nu = tx.init(PARAMS), np.zeros(2), np.zeros(2), np.zeros(2)
    for step in range(1, 4):
        losses = np.array([1.0 + step, 0.1])
        grads, counts = as_tree(jacobian(2)), jnp.asarray([1.0, float(step == 1)])
        _, state = tx.update(grads, state, PARAMS, task_losses=jnp.asarray(losses), task_counts=counts)
        slope = 0.5 - np.exp(-s) * losses
        there = np.array([True, step == 1])
        mu, nu = np.where(there, 0.9 * mu + 0.1 * slope, mu), np.where(there, 0.999 * nu + 0.001 * slope**2, nu)
        adam = 1e-3 * (mu / (1 - 0.9**step)) / (np.sqrt(nu / (1 - 0.999**step)) + 1e-8)
        s = np.where(there, s - adam, s)
    np.testing.assert_allclose(state.method.log_variances, s, atol=1e-6)


@pytest.mark.parametrize(("temperature", "window"), [(2.0, 1), (0.5, 1), (2.0, 2)])
def test_dwa_weights_are_the_softmax_of_loss_ratios(temperature, window):
    rows = jacobian(3)
    state, step = compiled("dwa", 3, (("temperature", temperature), ("window", window)))
    losses = np.random.default_rng(0).uniform(0.5, 3.0, size=(7, 3))
    for k in range(7):
        updates, state = step(as_tree(rows), state, jnp.asarray(losses[k], jnp.float32), jnp.ones(3))
        done = k // window
        means = losses[: done * window].reshape(done, window, 3).mean(1)
        ratios = means[-1] / means[-2] if done > 1 else np.ones(3)
        e = np.exp(ratios / temperature)
        np.testing.assert_allclose(weights_of(as_row(updates), rows), 3 * e / e.sum(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", WITH_LOSSES)
def test_methods_on_losses_ask_for_them(name):
    tx = make(name, 2)
    with pytest.raises(ValueError, match=rf"{name} needs task_losses: call update\(..., task_losses=array of \[2\]"):
        tx.update(as_tree(jacobian(2)), tx.init(PARAMS), PARAMS)


# --- weights from the Gramian ------------------------------------------------------------------------------------


def test_pcgrad_of_two_tasks_is_the_formula():
    a, b = rows = np.array([jacobian(2)[0], jacobian(2)[1] - jacobian(2)[0]])
    assert a @ b < 0
    expected = (a - a @ b / (b @ b) * b) + (b - a @ b / (a @ a) * a)
    np.testing.assert_allclose(merged("pcgrad", rows), expected, atol=1e-5)
    friends = np.array([a, -b])
    np.testing.assert_allclose(merged("pcgrad", friends), a - b, atol=1e-5)


def test_pcgrad_of_many_tasks_follows_from_the_gramian_alone():
    rows, rng = jacobian(5, conflict=1.2), np.random.default_rng(1)
    orders = np.stack([rng.permutation(5) for _ in range(5)])
    expected = []
    for i in range(5):
        g = rows[i].copy()
        for j in orders[i]:
            if j != i and g @ rows[j] < 0:
                g -= g @ rows[j] / (rows[j] @ rows[j]) * rows[j]
        expected.append(g)
    ours = projected(jnp.asarray(rows @ rows.T, jnp.float32), jnp.asarray(orders)) @ rows
    np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_pcgrad_draws_new_orders_every_step_from_the_key_in_its_state():
    rows = jacobian(8, conflict=1.2)
    state, step = compiled("pcgrad", 8)
    first, later = step(as_tree(rows), state, jnp.ones(8), jnp.ones(8))
    again, _ = step(as_tree(rows), state, jnp.ones(8), jnp.ones(8))
    second, _ = step(as_tree(rows), later, jnp.ones(8), jnp.ones(8))
    np.testing.assert_array_equal(as_row(first), as_row(again))
    assert np.abs(as_row(first) - as_row(second)).max() > 1e-3
    assert np.abs(as_row(first) - merged("pcgrad", rows, seed=1)).max() > 1e-3


def simplex_grid(num_tasks, steps):
    points = itertools.product(range(steps + 1), repeat=num_tasks - 1)
    grid = np.array([p for p in points if sum(p) <= steps]) / steps
    return np.concatenate([grid, 1 - grid.sum(1, keepdims=True)], axis=1)


def test_mgda_of_two_tasks_is_the_closed_form():
    for seed in range(4):
        a, b = rows = jacobian(2, seed) * [[1.0], [3.0 if seed % 2 else 1.0]]
        w = np.clip((b - a) @ b / ((a - b) @ (a - b)), 0, 1)
        np.testing.assert_allclose(merged("mgda", rows), w * a + (1 - w) * b, atol=1e-4)


def test_mgda_is_no_longer_than_any_combination_on_a_grid():
    for seed in range(4):
        rows = jacobian(3, seed)
        shortest = np.linalg.norm(simplex_grid(3, 200) @ rows, axis=1).min()
        ours = merged("mgda", rows)
        w = weights_of(ours, rows)
        assert np.linalg.norm(ours) <= shortest * (1 + 1e-5)
        assert w.min() > -1e-5
        assert abs(w.sum() - 1) < 1e-5


def test_mgda_of_opposed_tasks_stands_still():
    rows = np.stack([jacobian(1)[0], -2 * jacobian(1)[0]])
    assert np.linalg.norm(merged("mgda", rows)) < 1e-5 * np.linalg.norm(rows)


@pytest.mark.parametrize("c", [0.2, 0.5, 0.9])
def test_cagrad_is_best_for_the_worst_task_on_the_ball(c):
    for seed in range(3):
        rows = jacobian(3, seed)
        mean = rows.mean(0)
        radius = c * np.linalg.norm(mean)
        combined = simplex_grid(3, 200) @ rows
        dual = combined @ mean + radius * np.linalg.norm(combined, axis=1)
        ours = merged("cagrad", rows, c=c)
        # The smallest dual value is the largest that any direction on the ball gives to its worst task.
        assert np.linalg.norm(ours - mean) == pytest.approx(radius, rel=1e-4)
        assert (rows @ ours).min() == pytest.approx(dual.min(), rel=1e-3)
        best = combined[dual.argmin()]
        np.testing.assert_allclose(ours, mean + radius * best / np.linalg.norm(best), atol=3e-2)


def test_cagrad_at_zero_is_the_mean_and_below_is_refused():
    np.testing.assert_allclose(merged("cagrad", jacobian(3), c=0.0), jacobian(3).mean(0), atol=1e-6)
    with pytest.raises(ValueError, match="cagrad's c must be at least 0, got -1"):
        baselines.cagrad(optax.identity(), c=-1)


@pytest.mark.parametrize("num_tasks", [2, 3, 8])
def test_nash_weights_solve_the_bargaining_condition(num_tasks):
    rows = jacobian(num_tasks)
    a = weights_of(merged("nash_mtl", rows), rows)
    assert a.min() > 0
    np.testing.assert_allclose(rows @ rows.T @ a * a, 1, rtol=1e-3)


@pytest.mark.parametrize("num_tasks", [2, 3, 8])
def test_imtl_g_projects_equally_on_all_tasks(num_tasks):
    rows = jacobian(num_tasks)
    ours = merged("imtl_g", rows)
    projections = rows @ ours / np.linalg.norm(rows, axis=1)
    np.testing.assert_allclose(projections, projections[0], rtol=1e-3)
    assert projections[0] > 0
    assert abs(weights_of(ours, rows).sum()) == pytest.approx(1, abs=1e-4)


def test_imtl_g_of_two_tasks_is_the_closed_form():
    a, b = rows = jacobian(2)
    u, v = a / np.linalg.norm(a), b / np.linalg.norm(b)
    w = a @ (u - v) / ((a - b) @ (u - v))  # the second task's weight, in the paper's notation
    np.testing.assert_allclose(merged("imtl_g", rows), (1 - w) * a + w * b, atol=1e-4)


@pytest.mark.parametrize("num_tasks", [2, 3, 8])
def test_aligned_gradients_have_condition_number_one(num_tasks):
    rows = jacobian(num_tasks)
    aligned = np.asarray(alignment(jnp.asarray(rows @ rows.T, jnp.float32)), np.float64) @ rows
    values = np.linalg.svd(aligned, compute_uv=False)
    assert values[0] / values[-1] == pytest.approx(1, abs=1e-3)
    u, s, vt = np.linalg.svd(rows, full_matrices=False)
    np.testing.assert_allclose(merged("aligned_mtl", rows), (s[-1] * u @ vt).mean(0), atol=1e-3)


def test_aligned_gradients_of_deficient_rank_stay_in_their_span():
    row = jacobian(1)[0]
    np.testing.assert_allclose(merged("aligned_mtl", np.stack([row, row])), row, atol=1e-4)


def nearest_without_conflict(rows, row):
    """The projection of a gradient onto the dual cone of all: the best of every set of gradients that are added."""
    best = row
    for number in range(len(rows) + 1):
        for chosen in map(list, itertools.combinations(range(len(rows)), number)):
            added = -np.linalg.pinv(rows[chosen].T) @ row if chosen else np.zeros(0)
            candidate = row + added @ rows[chosen]
            inside = (rows @ candidate).min() > -1e-9
            if inside and ((rows @ best).min() < -1e-9 or np.linalg.norm(candidate - row) < np.linalg.norm(best - row)):
                best = candidate
    return best


@pytest.mark.parametrize("num_tasks", [2, 3, 5])
def test_upgrad_is_the_mean_of_the_nearest_gradients_without_conflict(num_tasks):
    for seed in range(3):
        rows = jacobian(num_tasks, seed, conflict=0.95)
        expected = np.mean([nearest_without_conflict(rows, row) for row in rows], axis=0)
        np.testing.assert_allclose(merged("upgrad", rows), expected, atol=1e-4)


def test_upgrad_averages_gradients_without_conflict_and_is_half_of_pcgrad_of_two():
    agreeing = np.abs(jacobian(3))
    np.testing.assert_allclose(merged("upgrad", agreeing), agreeing.mean(0), atol=1e-5)
    rows = jacobian(2, conflict=0.95)
    np.testing.assert_allclose(merged("upgrad", rows), merged("pcgrad", rows) / 2, atol=1e-5)
