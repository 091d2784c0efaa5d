"""Properties that all baselines share."""

import inspect
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from merging import (
    ALL,
    GRADIENT_BASED,
    MERGING,
    PARAMS,
    SHAPES,
    as_row,
    as_tree,
    compiled,
    jacobian,
    make,
    merged,
    weights_of,
)
from problems import difference

from gems_jax import baselines


@pytest.mark.parametrize("name", MERGING)
def test_one_task_keeps_its_direction(name):
    row = jacobian(1)
    ours = merged(name, row)
    assert ours @ row[0] == pytest.approx(np.linalg.norm(ours) * np.linalg.norm(row), rel=1e-5)
    assert np.linalg.norm(ours) > 0.5


@pytest.mark.parametrize(
    ("name", "num_tasks"),
    # The random orders of PCGrad are of no consequence only where there are two tasks.
    [case for case in itertools.product(MERGING, [2, 8]) if case[0] != "pcgrad" or case[1] == 2],
)
def test_the_order_of_the_tasks_does_not_matter(name, num_tasks):
    rows, rng = jacobian(num_tasks), np.random.default_rng(0)
    losses, counts = rng.uniform(1, 2, num_tasks), rng.integers(1, 9, num_tasks)
    order = np.roll(np.arange(num_tasks), 1)
    ours = merged(name, rows, losses, counts)
    np.testing.assert_allclose(merged(name, rows[order], losses[order], counts[order]), ours, atol=2e-3)


@pytest.mark.parametrize("by", [100, 1e30, 1e-30])
@pytest.mark.parametrize("name", MERGING)
def test_scaling_all_gradients_scales_the_update(name, by):
    rows = jacobian(3)
    expected = merged(name, rows)
    found = merged(name, by * rows) / (1 if name == "nash_mtl" else by)
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["nash_mtl", "imtl_g"])
def test_scaling_one_task_keeps_the_direction(name):
    rows = jacobian(3)
    one, other = merged(name, rows), merged(name, rows * [[1.0], [20.0], [0.1]])
    assert one @ other / np.linalg.norm(one) / np.linalg.norm(other) == pytest.approx(1, abs=1e-4)
    if name == "nash_mtl":
        np.testing.assert_allclose(one, other, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "num_tasks"), [("pcgrad", 2), *itertools.product(["mgda", "nash_mtl", "imtl_g", "upgrad"], [2, 3, 8])]
)
def test_no_conflict_is_left_where_none_is_promised(name, num_tasks):
    for seed in range(3):
        rows = jacobian(num_tasks, seed, conflict=0.95)
        assert (rows @ merged(name, rows)).min() > -1e-4


def test_one_entry_of_a_large_gradient_that_is_not_a_number_leaves_its_task_out():
    """XLA's maximum on CPU drops it from 4,096 entries on."""
    grads = np.random.default_rng(0).normal(size=(2, 64, 64)).astype(np.float32)
    grads[1, 40, 50] = np.nan
    tx = baselines.pcgrad(optax.sgd(1.0))
    updates, _ = jax.jit(tx.update)({"w": grads}, tx.init({"w": jnp.zeros((64, 64))}))
    np.testing.assert_allclose(updates["w"], -grads[0], rtol=1e-6)


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
@pytest.mark.parametrize("name", MERGING)
def test_a_task_that_is_absent_or_not_finite_is_left_out(name, bad):
    rows = jacobian(3)
    rows[1] = bad
    losses, counts = np.array([1.0, 0.0 if bad == 0 else bad, 2.0]), np.array([3, 0 if bad == 0 else 5, 4])
    kept = [0, 2]
    expected = merged(name, rows[kept], losses[kept], counts[kept])
    np.testing.assert_allclose(merged(name, rows, losses, counts), expected, atol=1e-3)


@pytest.mark.parametrize("name", MERGING)
def test_extreme_steps_leave_nothing_that_is_not_finite(name):
    state, step = compiled(name, 3)
    row = jacobian(1)[0]
    opposed = np.stack([row, -row, row])
    extremes = [0 * opposed, opposed, np.stack([row] * 3), 1e-15 * jacobian(3), 1e-42 * jacobian(3), 1e12 * jacobian(3)]
    extremes += [np.full_like(opposed, np.nan), jacobian(3) * [[1e-9], [1.0], [1e9]]]
    for rows in extremes:
        for losses in (np.zeros(3), np.array([1e-30, 1e30, 1.0]), np.full(3, np.nan)):
            updates, state = step(as_tree(rows), state, jnp.asarray(losses, jnp.float32), jnp.ones(3))
            assert all(np.isfinite(x).all() for x in jax.tree.leaves((updates, state))), (rows[0, 0], losses)
    last, _ = step(as_tree(jacobian(3)), state, jnp.ones(3), jnp.ones(3))
    assert np.linalg.norm(as_row(last)) > 1e-2


@pytest.mark.parametrize("name", ALL)
def test_later_steps_compile_nothing_and_the_state_s_arrays_keep_their_types(name):
    tx = make(name, 2, optax.scale_by_adam())
    state = tx.init(PARAMS)
    form = jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert all(np.asarray(x).dtype.kind in "fiu" for x in jax.tree.leaves(state))

    def step(grads, state):
        updates, state = tx.update(grads, state, PARAMS, task_losses=jnp.ones(2), task_counts=jnp.ones(2))
        return updates, state

    step = jax.jit(step)
    for seed in range(2):
        updates, state = step(as_tree(jacobian(2, seed)), state)
        assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == form
        assert jax.tree.map(jnp.shape, updates) == SHAPES
    assert step._cache_size() == 1


def stepper(tx, **jit_options):
    def step(grads, state, params):
        losses, counts = jnp.asarray([1.0, 2.0]), jnp.asarray([3.0, 1.0])
        updates, state = tx.update(grads, state, params, task_losses=losses, task_counts=counts)
        return optax.apply_updates(params, updates), state

    return jax.jit(step, **jit_options)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_the_learning_rate_can_be_injected_and_buffers_donated(name):
    """Numbers that decide shapes or are checked are static, as ``STATIC_ARGS`` are for `gems_jax.gems`."""
    factory = getattr(baselines, name)
    options = {p: v.default for p, v in inspect.signature(factory).parameters.items() if p != "inner_tx"}
    options = {p: v for p, v in options.items() if v is not inspect.Parameter.empty} | {"num_tasks": 2}

    def make_tx(learning_rate, **static):
        inner = optax.trace(0.9) if name == "galore" else optax.adamw(1.0, weight_decay=0.1)
        return optax.chain(factory(inner, **static), optax.scale_by_learning_rate(learning_rate))

    def with_rate(learning_rate):
        return make_tx(learning_rate, **options)

    tx = optax.inject_hyperparams(with_rate)(learning_rate=0.1)
    start = jax.tree.map(lambda p: p + 1.0, PARAMS)
    step, plain = stepper(tx, donate_argnums=(1, 2)), stepper(with_rate(0.1))
    fresh = lambda: (tx.init(start), jax.tree.map(jnp.copy, start))  # noqa: E731
    (state, params), (other, expected) = fresh(), (with_rate(0.1).init(start), start)
    for seed in range(2):
        params, state = step(as_tree(jacobian(2, seed)), state, params)
        expected, other = plain(as_tree(jacobian(2, seed)), other, expected)
    assert difference(params, expected) < 1e-5
    assert difference(params, start) > 1e-3
    state, params = fresh()
    state.hyperparams["learning_rate"] = jnp.zeros(())
    still, _ = step(as_tree(jacobian(2)), state, params)
    assert difference(still, start) == 0
    assert step._cache_size() == 1
    # The factory itself, with what it holds besides transforms as static arguments.
    direct = optax.inject_hyperparams(factory, static_args=tuple(options))(optax.sgd(0.1), **options)
    init = jax.eval_shape(direct.init, PARAMS)
    assert jax.tree.structure(init.inner_state) == jax.tree.structure(
        jax.eval_shape(factory(optax.sgd(0.1), **options).init, PARAMS)
    )


@pytest.mark.parametrize("name", ALL)
def test_abstract_parameters_give_the_form_of_the_state(name):
    tx = make(name, 2, optax.scale_by_adam())
    abstract, state = jax.eval_shape(tx.init, jax.eval_shape(lambda: PARAMS)), tx.init(PARAMS)
    assert jax.tree.structure(abstract) == jax.tree.structure(state)
    form = lambda tree: [(x.shape, x.dtype) for x in jax.tree.leaves(tree)]  # noqa: E731
    assert form(abstract) == form(state)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_nnx_optimizers_take_them(name):
    from flax import nnx

    model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, make(name, 2, optax.sgd(0.1)), wrt=nnx.Param)
    start = jnp.array(model.kernel[...])
    grads = jax.tree.map(lambda p: jnp.ones((2, *p.shape)), nnx.state(model, nnx.Param))
    update = nnx.jit(lambda model, optimizer, grads: optimizer.update(model, grads, task_losses=jnp.ones(2)))
    update(model, optimizer, grads)
    assert int(optimizer.step[...]) == 1
    moved = model.kernel[...] - start
    assert np.all(np.asarray(moved) < -1e-3)  # against the gradient both tasks agree on
    np.testing.assert_allclose(moved, moved[0, 0], rtol=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_bfloat16_parameters_keep_the_types_of_updates_and_state(name):
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    grads = jax.tree.map(lambda p: jnp.zeros((2, *p.shape), p.dtype), params)
    tx = make(name, 2, optax.scale_by_adam())
    state = jax.eval_shape(tx.init, params)
    update = lambda g, s: tx.update(g, s, params, task_losses=jnp.ones(2))  # noqa: E731
    updates, after = jax.eval_shape(update, grads, state)
    types = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)  # noqa: E731
    assert types(after) == types(state)
    assert types(updates) == types(params)


@pytest.mark.parametrize("name", ALL)
def test_optax_finds_what_mirrors_the_parameters(name):
    tx = make(name, 2, optax.trace(0.9))
    state = tx.init(PARAMS)
    marked = optax.tree.map_params(tx, lambda x: x + 1, state)
    count = sum(int(jnp.sum(a != b)) for a, b in zip(jax.tree.leaves(marked), jax.tree.leaves(state), strict=True))
    assert count > 0
    assert jax.tree.structure(marked) == jax.tree.structure(state)


@pytest.mark.parametrize("name", GRADIENT_BASED)
def test_no_array_holds_all_leaves_of_all_tasks(name):
    tx = make(name, 2)
    state = tx.init(PARAMS)
    jaxpr = jax.make_jaxpr(lambda g: tx.update(g, state, PARAMS))(as_tree(jacobian(2)))
    largest = max(var.aval.size for eqn in jaxpr.jaxpr.eqns for var in eqn.outvars)
    assert largest <= 2 * 12  # the largest leaf, twice


@pytest.mark.parametrize("name", ALL)
def test_a_leaf_without_its_task_axis_is_refused_by_name(name):
    tx = make(name, 2)
    grads, state = as_tree(jacobian(2)), jax.eval_shape(tx.init, PARAMS)
    losses = jnp.ones(2)
    with pytest.raises(ValueError, match=r"gradient leaf 'w' has shape \[4, 3\], expected \[2, 4, 3\]"):
        tx.update(grads | {"w": grads["w"][0]}, state, PARAMS, task_losses=losses)
    with pytest.raises(ValueError, match="gradient leaf 'stack' has 3 tasks, expected 2"):
        tx.update(grads | {"stack": jnp.zeros((3, 2, 3, 2))}, state, PARAMS, task_losses=losses)
    with pytest.raises(ValueError, match=r"task_counts has shape \[3\], expected \[2\]"):
        tx.update(grads, state, PARAMS, task_losses=losses, task_counts=jnp.ones(3))
    with pytest.raises(ValueError, match="num_tasks must be at least 1, got 0"):
        make(name, 0)


@pytest.mark.slow
def test_without_parameters_and_num_tasks_a_leaf_that_differs_is_named():
    tx = baselines.mgda(optax.identity())
    grads, state = as_tree(jacobian(2)), tx.init(PARAMS)
    with pytest.raises(ValueError, match=r"gradient leaf 'stack' has shape \[2, 2, 3, 2\], expected 7 tasks"):
        tx.update(grads | {"scale": jnp.zeros(7)}, state)
    with pytest.raises(ValueError, match="gradient leaf 'scale' is a scalar"):
        tx.update(grads | {"scale": jnp.zeros(())}, state)
    assert tx.update(grads, state)[0]["w"].shape == (4, 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", MERGING)
def test_a_leaf_merged_before_stands_for_every_task(name):
    same = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)
    tx, grads = make(name, 2), as_tree(jacobian(2))
    whole = {"w": same[None], "stack": grads["stack"], "scale": grads["scale"]}
    step = jax.jit(lambda g, s: tx.update(g, s, task_losses=jnp.ones(2))[0])
    updates = step(whole, tx.init(PARAMS))
    rows = np.stack([as_row({k: grads[k][t] if k != "w" else 0 * same for k in SHAPES}) for t in range(2)])
    total = weights_of(as_row(updates | {"w": 0 * same}), rows).sum()
    np.testing.assert_allclose(updates["w"], total * same, rtol=1e-3, atol=1e-5)
    updates = step(whole | {"w": jnp.full((1, 4, 3), jnp.nan)}, tx.init(PARAMS))
    assert all(np.isfinite(u).all() for u in jax.tree.leaves(updates))


@pytest.mark.parametrize("name", ["joint", "mgda", "nash_mtl"])
def test_gradients_all_merged_before_keep_their_direction(name):
    row = jacobian(1)
    tx = make(name, 2)
    update = jax.jit(lambda g, s: tx.update(g, s)[0])
    ours = as_row(update(as_tree(row), tx.init(PARAMS)))
    assert ours @ row[0] == pytest.approx(np.linalg.norm(ours) * np.linalg.norm(row), rel=1e-5)


@pytest.mark.slow
def test_other_extra_arguments_reach_the_inner_transform():
    def update(updates, state, params=None, *, factor, **extra):
        return jax.tree.map(lambda u: factor * u, updates), state

    inner = optax.GradientTransformationExtraArgs(lambda params: (), update)
    tx = baselines.joint(inner)
    updates, _ = tx.update(jnp.ones((2, 3)), tx.init(jnp.zeros(3)), jnp.zeros(3), factor=5.0)
    assert updates.tolist() == [5.0, 5.0, 5.0]


def test_a_loss_that_stays_zero_does_not_drive_its_weight_to_infinity():
    tx = make("uncertainty", 2, variance_tx=optax.sgd(100.0))
    state = tx.init(PARAMS)
    for _ in range(2):
        updates, state = tx.update(as_tree(jacobian(2)), state, PARAMS, task_losses=jnp.asarray([0.0, 1.0]))
    assert state.method.log_variances[0] == -20
    assert np.isfinite(as_row(updates)).all()


def test_a_shared_gradient_of_the_callers_own_replaces_the_joint_one_and_is_refused_elsewhere():
    params, grads = {"w": jnp.ones((2, 3))}, {"w": jnp.ones((2, 2, 3))}
    own = {"w": jnp.arange(6.0).reshape(2, 3)}
    tx = baselines.joint(optax.sgd(1.0))
    updates, _ = tx.update(grads, tx.init(params), params, shared_grads=own)
    np.testing.assert_array_equal(updates["w"], -own["w"])
    tx = baselines.pcgrad(optax.sgd(1.0))
    with pytest.raises(ValueError, match="pcgrad weighs the tasks' gradients itself: leave shared_grads out"):
        tx.update(grads, tx.init(params), params, shared_grads=own)
