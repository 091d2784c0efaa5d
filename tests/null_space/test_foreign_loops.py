"""The optimiser inside training loops that know nothing of it: plain optax, flax's NNX, accumulation."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from problems import assert_no_leak

import gems_jax as gj

pytestmark = pytest.mark.slow

LOSS_BASED = ("uncertainty", "dwa")  # baselines with a state of their own
WIDTHS = (6, 16, 16, 3)


def teacher_batches(rows=64, seed=0, num_tasks=2):
    """Two tasks of one teacher: the same inputs' law, outputs that differ by a rotation of a part."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(num_tasks, rows, WIDTHS[0]))
    common, own = rng.normal(size=(WIDTHS[0], 3)), rng.normal(size=(num_tasks, WIDTHS[0], 3)) * 0.3
    y = np.tanh(x @ common + x @ own)
    return {"x": jnp.asarray(x, jnp.float32), "y": jnp.asarray(y, jnp.float32)}


BATCH = teacher_batches()
GENERAL = np.random.default_rng(9).normal(size=(200, 2)) @ np.random.default_rng(8).normal(size=(2, WIDTHS[0]))


def protected():
    """The first layer must not move on inputs of the plane that general data lie in."""
    return gj.NullSpace.from_moments({"layers/0/kernel": GENERAL.T @ GENERAL / 200}, rank=2)


# --- plain optax on an MLP in the manner of its quick start -------------------------------------------------------


def mlp_params(seed=0):
    rng = np.random.default_rng(seed)
    layer = lambda m, n: {"kernel": rng.normal(size=(m, n)) * m**-0.5, "bias": np.zeros(n)}  # noqa: E731
    layers = [layer(m, n) for m, n in zip(WIDTHS[:-1], WIDTHS[1:], strict=True)]
    return jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), {"layers": layers})


def forward(params, x):
    for layer in params["layers"][:-1]:
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
    last = params["layers"][-1]
    return x @ last["kernel"] + last["bias"]


def mse(params, batch):
    return jnp.mean((forward(params, batch["x"]) - batch["y"]) ** 2)


def optax_loop(optimizer, params, batches, **extra):
    opt_state = optimizer.init(params)

    @functools.partial(jax.jit)
    def train_step(params, opt_state, batch):
        losses, grads = gj.task_value_and_grad(mse)(params, batch)
        updates, opt_state = optimizer.update(grads, opt_state, params, task_losses=losses, **extra)
        return optax.apply_updates(params, updates), opt_state, losses

    history = []
    for batch in batches:
        params, opt_state, losses = train_step(params, opt_state, batch)
        history.append(np.asarray(losses))
    assert train_step._cache_size() == 1
    return params, opt_state, np.array(history)


@pytest.mark.slow
def test_a_plain_optax_loop_lowers_every_tasks_loss_and_keeps_general_outputs():
    schedule = optax.warmup_cosine_decay_schedule(0.0, 2e-2, 5, 80)
    gems = gj.gems(schedule, num_tasks=2, rank=0.5, refresh_every=20, null_space=protected(), weight_decay=1e-3)
    start = mlp_params()
    params, state, history = optax_loop(optax.chain(gems, optax.clip(1.0)), start, [BATCH] * 80)
    assert np.all(history[-1] < 0.2 * history[0])
    first = lambda p: GENERAL @ np.asarray(p["layers"][0]["kernel"], float)  # noqa: E731
    moved = np.asarray(params["layers"][0]["kernel"] - start["layers"][0]["kernel"], float)
    assert np.linalg.norm(moved) > 0.1
    assert np.linalg.norm(first(params) - first(start)) < 1e-4 * np.linalg.norm(GENERAL) * np.linalg.norm(moved)
    assert int(gj.diagnostics(state)["skipped"].sum()) == 0


# --- NNX -------------------------------------------------------------------------------------------------------


class Model(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(m, n, rngs=rngs) for m, n in ((WIDTHS[0], 16), (16, WIDTHS[-1]))])
        self.dropout = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x):
        return self.layers[1](self.dropout(nnx.relu(self.layers[0](x))))


@pytest.mark.slow
def test_an_nnx_loop_with_its_optimizer_lowers_every_tasks_loss():
    model = Model(nnx.Rngs(0))
    tx = gj.gems(2e-2, num_tasks=2, rank=0.5, refresh_every=20, null_space=protected())
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    start = jax.tree.map(jnp.copy, nnx.state(model, nnx.Param))

    @nnx.jit
    def train_step(model, optimizer, batch):
        graphdef, params, rest = nnx.split(model, nnx.Param, ...)

        def loss_fn(params, batch):
            return jnp.mean((nnx.merge(graphdef, params, rest, copy=True)(batch["x"]) - batch["y"]) ** 2)

        losses, grads = gj.task_value_and_grad(loss_fn)(params, batch)
        optimizer.update(model, grads, task_losses=losses)
        return losses

    model.train()
    for _ in range(60):
        train_step(model, optimizer, BATCH)
    model.eval()
    after = [float(jnp.mean((model(BATCH["x"][t]) - BATCH["y"][t]) ** 2)) for t in range(2)]
    fresh = Model(nnx.Rngs(0))
    fresh.eval()
    before = [float(jnp.mean((fresh(BATCH["x"][t]) - BATCH["y"][t]) ** 2)) for t in range(2)]
    assert np.all(np.array(after) < 0.3 * np.array(before))
    moved = jax.tree.map(lambda a, b: a - b, nnx.state(model, nnx.Param), start)
    assert_no_leak(moved, protected(), 1e-4)
    assert int(optimizer.step[...]) == 60
    state = nnx.to_pure_dict(nnx.state(optimizer, nnx.optimizer.OptState))
    assert state  # what a checkpoint of the optimizer holds


# --- micro-batches -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_loop_over_micro_batches_updates_every_kth_and_ends_where_large_batches_do():
    k, updates = 4, 30
    make = lambda: gj.gems(2e-2, num_tasks=2, rank=0.5, refresh_every=10)  # noqa: E731
    quarter = lambda j: {name: x[:, 16 * j : 16 * (j + 1)] for name, x in BATCH.items()}  # noqa: E731
    start, counts = mlp_params(), jnp.asarray([16.0, 16.0])
    micro = [quarter(i % k) for i in range(k * updates)]
    params, state, history = optax_loop(gj.accumulate(make(), k), start, micro, task_counts=counts)
    per_update = history.reshape(updates, k, 2).mean(axis=1)
    assert np.all(per_update[-1] < 0.3 * per_update[0])
    _, _, large = optax_loop(make(), start, [BATCH] * updates, task_counts=4 * counts)
    np.testing.assert_allclose(per_update[:10], large[:10], rtol=1e-3)  # over the first refresh at update 10
    np.testing.assert_allclose(per_update[-1], large[-1], rtol=0.1)
    assert int(state.inner[0].count) == updates


def test_optax_wrappers_that_cannot_wrap_it_fail_and_ours_do_not():
    """optax.MultiSteps and optax.apply_if_finite expect gradients of the parameters' shape."""
    params = mlp_params()
    grads = jax.tree.map(lambda p: jnp.ones((2, *p.shape)), params)
    tx = gj.gems(1e-2, num_tasks=2, rank=2)
    multi = optax.MultiSteps(tx, 2)
    with pytest.raises((TypeError, ValueError)):
        jax.eval_shape(lambda g, p: multi.update(g, multi.init(p), p), grads, params)
    refused = optax.apply_if_finite(tx, 2)
    with pytest.raises((TypeError, ValueError)):
        jax.eval_shape(lambda g, p: refused.update(g, refused.init(p), p), grads, params)
    for ours in (gj.accumulate(tx, 2), gj.apply_if_finite(tx, 2)):
        updates, _ = jax.eval_shape(lambda g, p: ours.update(g, ours.init(p), p), grads, params)  # noqa: B023
        assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, params)


@pytest.mark.parametrize("name", ["joint", "pcgrad"])
def test_a_baseline_takes_the_optimisers_place_without_another_line_changed(name):
    inner = optax.adam(2e-2)
    tx = getattr(gj.baselines, name)(inner, num_tasks=2)
    _, _, history = optax_loop(tx, mlp_params(), [BATCH] * 40)
    assert np.all(history[-1] < 0.3 * history[0])


# --- loops that donate what they pass ---------------------------------------------------------------------------


def held_on_devices(null_space):
    """The same null space, its factors arrays of jax, as after a restore onto devices."""
    factors = {n: dataclasses.replace(f, basis=jnp.asarray(f.basis)) for n, f in null_space.factors.items()}
    return dataclasses.replace(null_space, factors=factors)


MAKERS = {
    "gems": lambda tx: tx,
    "accumulate": lambda tx: gj.accumulate(tx, 2),
    "apply_if_finite": lambda tx: gj.apply_if_finite(tx, 1),
    **{name: lambda tx, name=name: getattr(gj.baselines, name)(optax.adam(1e-2), num_tasks=2) for name in LOSS_BASED},
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_fresh_state_owns_every_buffer_so_that_it_can_be_donated(name):
    ns, params = held_on_devices(protected()), mlp_params()
    tx = MAKERS[name](gj.gems(1e-2, num_tasks=2, rank=2, null_space=ns, gate=gj.gates.learned()))
    others = [*jax.tree.leaves(params), *(f.basis for f in ns.factors.values())]
    held = {x.unsafe_buffer_pointer(): "the caller's" for x in others}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tx.init(params)):
        where = leaf.unsafe_buffer_pointer()
        assert where not in held, f"{gj.leaf_path(path)} shares the buffer of {held[where]}"
        held[where] = gj.leaf_path(path)
