"""Gates: shares against numpy, and a learned gate that learns."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import make_grads, make_params, run
from reference import heuristic_gates

import gems_jax as gj
from gems_jax.transform.gates import Signals, constant, heuristic, learned, network, share

FEW = settings(max_examples=25, derandomize=True)
numbers = st.lists(st.sampled_from([0.0, 1e-12, 1e-3, 0.7, 1.0, 50.0, 1e20]), min_size=3, max_size=3)


@FEW
@given(losses=numbers, norms=numbers, counts=numbers)
def test_heuristic_gates_are_those_of_numpy_and_sum_to_one(losses, norms, counts):
    signals = [jnp.asarray(x, jnp.float32) for x in (losses, norms, counts)]
    gate = heuristic()
    gates, _ = gate.update(Signals(*signals, progress=jnp.zeros(3)), gate.init(3))
    np.testing.assert_allclose(gates, heuristic_gates(losses, norms, counts), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(jnp.sum(gates), 1, rtol=1e-6)


def test_shares_of_nothing_are_equal_and_large_numbers_do_not_overflow():
    np.testing.assert_allclose(share(jnp.zeros(3)), 1 / 3)
    large = jnp.array([5e37] * 7 + [2.5e37], jnp.float32)  # their plain sum is infinite
    np.testing.assert_allclose(share(large), np.array([1.0] * 7 + [0.5]) / 7.5, rtol=1e-6)


def test_each_coefficient_has_its_signal():
    ones = jnp.ones(2)
    for i, name in enumerate(("loss", "grad_norm", "count")):
        signals = [ones, ones, ones]
        signals[i] = jnp.array([3.0, 1.0])
        only = heuristic(**({"loss": 0.0, "grad_norm": 0.0, "count": 0.0} | {name: 2.0}))
        np.testing.assert_allclose(only.update(Signals(*signals, progress=ones), ())[0], [0.75, 0.25])


@pytest.mark.slow
def test_norms_of_projected_gradients_can_be_used_instead():
    params, shapes = make_params({"w": (8, 6), "bias": (6,)}), {"w": (8, 6), "bias": (6,)}

    def grads_of(i):
        grads = make_grads(i, shapes=shapes)
        grads["bias"][0] *= 100  # outside the subspaces
        return grads

    gates = {}
    for norms in ("full", "projected"):
        gate = heuristic(loss=0.0, grad_norm=1.0, count=0.0, norms=norms)
        _, state, _ = run(gj.scale_by_gems(num_tasks=2, rank=3, gate=gate), params, grads_of, 1)
        gates[norms] = np.asarray(state.diagnostics.gates)
    assert gates["full"][0] > 0.9
    assert gates["projected"][0] < 0.7


@pytest.mark.slow
def test_constant_gates_weigh_the_task_updates():
    params = make_params({"w": (8, 6)})
    grads_of = lambda i: make_grads(i, shapes={"w": (8, 6)})  # noqa: E731
    seen = {}
    for weights in ((1, 0), (0, 1), (1, 1)):
        _, state, updates = run(gj.scale_by_gems(num_tasks=2, rank=3, gate=constant(weights)), params, grads_of, 1)
        seen[weights] = updates[0]["w"]
        np.testing.assert_allclose(state.diagnostics.gates, np.array(weights) / sum(weights))
    np.testing.assert_allclose(seen[(1, 1)], (seen[(1, 0)] + seen[(0, 1)]) / 2, atol=1e-5)


class TurnState(NamedTuple):
    step: jax.Array


def worst_in_turn():
    """A gate of a user's own: the task of the largest loss in even steps, the other ones in odd steps."""

    def update(signals, state):
        worst = signals.losses == jnp.max(signals.losses)
        chosen = jnp.where(state.step % 2 == 0, worst, ~worst)
        return chosen / jnp.sum(chosen), TurnState(state.step + 1)

    return gj.gates.Gate(lambda num_tasks: TurnState(jnp.zeros((), jnp.int32)), update, needs=("task_losses",))


@pytest.mark.slow
def test_a_gate_from_outside_weighs_the_updates_and_keeps_its_state():
    params, losses = make_params({"w": (8, 6)}), jnp.array([1.0, 3.0])
    grads_of = lambda i: make_grads(i, shapes={"w": (8, 6)})  # noqa: E731
    tx = functools.partial(gj.gems, 1e-2, num_tasks=2, rank=3)
    _, state, own = run(tx(gate=worst_in_turn()), params, grads_of, 2, task_losses=losses)
    np.testing.assert_array_equal(state[0].diagnostics.gates, [1, 0])
    assert state[0].gate == TurnState(2)
    _, _, second = run(tx(gate=constant((0, 1))), params, grads_of, 1)
    np.testing.assert_allclose(own[0]["w"], second[0]["w"], rtol=1e-6)
    with pytest.raises(ValueError, match="the gate needs task_losses"):
        run(tx(gate=worst_in_turn()), params, grads_of, 1)


def simulate(progress_of, steps=300, **options):
    gate = learned(**({"learning_rate": 3e-3} | options))
    ones = jnp.ones(2)

    def step(state, i):
        gates, state = gate.update(Signals(ones, ones, ones, progress_of(i)), state)
        return state, gates

    state, gates = jax.jit(lambda s: jax.lax.scan(step, s, jnp.arange(steps)))(gate.init(2))
    return np.asarray(gates), state


@pytest.mark.slow
def test_a_learned_gate_moves_to_the_task_whose_updates_lower_the_mean_loss():
    gates, _ = simulate(lambda i: jnp.array([1.0, -0.2]))
    np.testing.assert_allclose(gates[0], [0.5, 0.5], atol=1e-6)
    assert gates[-1, 0] > 0.9
    gates, _ = simulate(lambda i: jnp.array([-0.2, 1.0]))
    assert gates[-1, 1] > 0.9


@pytest.mark.slow
def test_a_learned_gate_does_not_collapse_when_both_tasks_help():
    gates, _ = simulate(lambda i: jnp.array([1.0, 1.0]))
    np.testing.assert_allclose(gates[-1], [0.5, 0.5], atol=0.05)
    noisy = lambda i: 1.0 + 0.3 * jax.random.normal(jax.random.fold_in(jax.random.key(0), i), (2,))  # noqa: E731
    gates, _ = simulate(noisy, learning_rate=1e-3)
    assert 0.15 < gates[-1, 0] < 0.85


def test_the_entropy_weight_keeps_gates_apart_from_zero():
    weak, _ = simulate(lambda i: jnp.array([1.0, 0.9]), entropy=0.0)
    strong, _ = simulate(lambda i: jnp.array([1.0, 0.9]), entropy=1.0)
    assert weak[-1].min() < 0.05
    assert strong[-1].min() > 0.3


def test_the_temperature_decays_to_its_floor():
    _, state = simulate(lambda i: jnp.zeros(2), temperature=1.5, min_temperature=0.4, decay=0.9, steps=30)
    np.testing.assert_allclose(state.temperature, 0.4)


def test_without_news_a_learned_gate_stays_as_it_is():
    gates, state = simulate(lambda i: jnp.array([jnp.nan, 1.0]), steps=5)
    np.testing.assert_allclose(gates, 0.5, atol=1e-6)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(state))


@pytest.mark.slow
def test_in_training_the_gate_finds_the_task_that_serves_the_mean():
    """Task 0 has a steady gradient, task 1 noise without a direction: its updates lower no loss."""
    fixed = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)

    def grads_of(i):
        noise = np.random.default_rng([1, i]).normal(size=(8, 6)).astype(np.float32)
        return {"w": np.stack([fixed, 2 * noise])}

    tx = gj.scale_by_gems(num_tasks=2, rank=4, gate=learned(learning_rate=3e-3))
    losses = np.ones(2, np.float32)
    _, state, _ = run(tx, make_params({"w": (8, 6)}), grads_of, 150, task_losses=losses)
    assert state.diagnostics.gates[0] > 0.7
    assert state.previous["w"].shape == (2, 1, 2, 8)


@functools.cache
def training_run():
    """``run(seed, second task's rows, share of noise in its labels) -> gates of every step``: an MLP on a teacher."""
    tx = gj.gems(1e-2, num_tasks=2, rank=4, refresh_every=30, gate=learned(learning_rate=1e-3, hidden=16))

    def network(params, x):
        return jnp.tanh(x @ params["hidden"]) @ params["out"]

    def loss(params, batch):
        return gj.token_mean(jnp.mean((network(params, batch["x"]) - batch["y"]) ** 2, axis=-1), batch["mask"])

    def run(seed, rows, noise):
        keys = jax.random.split(jax.random.key(seed), 5)
        draw = lambda a, b: {"hidden": jax.random.normal(a, (8, 16)), "out": jax.random.normal(b, (16, 4))}  # noqa: E731
        teacher, params = draw(keys[0], keys[1]), draw(keys[2], keys[3])
        shares = jnp.asarray([0.0, noise])[:, None, None]

        def step(carry, key):
            params, state = carry
            x, random = (
                jax.random.normal(key, (2, 16, 8)),
                4 * jax.random.normal(jax.random.fold_in(key, 1), (2, 16, 4)),
            )
            y = (1 - shares) * network(teacher, x) + shares * random
            mask = (jnp.arange(16) < jnp.stack([16, rows])[:, None]).astype(jnp.float32)
            losses, grads = gj.task_value_and_grad(loss)(params, {"x": x, "y": y, "mask": mask})
            updates, state = tx.update(grads, state, params, task_losses=losses, task_counts=mask.sum(axis=1))
            return (optax.apply_updates(params, updates), state), (gj.diagnostics(state)["gates"], losses[0])

        return jax.lax.scan(step, (params, tx.init(params)), jax.random.split(keys[4], 200))[1]

    return jax.jit(run)


@pytest.mark.slow
def test_training_a_network_the_gate_leaves_a_task_of_pure_noise():
    """The second task's few rows have random labels: nothing that it learns lowers the mean loss on the next batch."""
    for seed in range(6):
        gates, losses = training_run()(seed, 2, 1.0)
        assert np.mean(gates[:10, 0]) < 0.75
        assert np.mean(gates[-20:, 0]) > 0.85, seed
        assert np.mean(losses[-20:]) < 0.3 * losses[0]


@pytest.mark.slow
def test_training_a_network_on_tasks_that_both_help_the_gate_keeps_both():
    for seed in range(6):
        gates, _ = training_run()(seed, 16, 0.0)
        assert 0.1 < np.mean(gates[-20:, 0]) < 0.9, seed
        np.testing.assert_allclose(np.sum(gates, axis=1), 1, rtol=1e-5)


def test_the_network_is_relu_layers_and_a_softmax():
    rng = np.random.default_rng(0)
    layers = [(rng.normal(size=s), rng.normal(size=s[1])) for s in ((6, 5), (5, 4), (4, 2))]
    x = rng.normal(size=6)
    h = np.maximum(np.maximum(x @ layers[0][0] + layers[0][1], 0) @ layers[1][0] + layers[1][1], 0)
    logits = (h @ layers[2][0] + layers[2][1]) / 0.7
    expected = np.exp(logits) / np.exp(logits).sum()
    params = [{"kernel": jnp.asarray(k, jnp.float32), "bias": jnp.asarray(b, jnp.float32)} for k, b in layers]
    np.testing.assert_allclose(network(params, jnp.asarray(x, jnp.float32), 0.7), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: heuristic(loss=-1.0), "gate coefficients"),
        (lambda: heuristic(0.0, 0.0, 0.0), "gate coefficients"),
        (lambda: heuristic(norms="low"), "norms is 'low'"),
        (lambda: constant([]), "constant gates"),
        (lambda: constant([1, -1]), "constant gates"),
        (lambda: learned(hidden=1), "hidden is a whole number, at least 2"),
        (lambda: learned(temperature=0.05), "min_temperature"),
        (lambda: learned(decay=0.0), "decay"),
    ],
    ids=range(8),
)
def test_arguments_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.slow
def test_gates_are_used_through_the_package():
    tx = gj.gems(1e-2, num_tasks=2, rank=2, gate=gj.gates.constant([1, 3]))
    params = {"w": jnp.ones((4, 5))}
    _, state = tx.update({"w": jnp.ones((2, 4, 5))}, tx.init(params), params)
    np.testing.assert_allclose(gj.diagnostics(state)["gates"], [0.25, 0.75])
