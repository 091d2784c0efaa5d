"""Weights that stray too far come back: against numpy, wrapped around any transform."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import make_grads, make_params, run

import gems_jax as gj

SHAPES = {"w": (6, 4), "rows": (5, 3)}


def test_weights_that_stray_are_averaged_with_the_pretrained_ones_as_numpy_does():
    start, limit, share = make_params(SHAPES), 1.5, 0.3
    tx = gj.orbit(optax.sgd(0.1), limit, share=share, mask={"w": True, "rows": False})
    grads_of = lambda i: {name: g[0] for name, g in make_grads(i, 1, SHAPES).items()}  # noqa: E731
    found, state, seen = run(tx, start, grads_of, 6)
    now, averaged = {name: p.astype(np.float64) for name, p in start.items()}, 0
    for i in range(6):
        now = {name: p - 0.1 * grads_of(i)[name] for name, p in now.items()}
        distance = np.linalg.norm(now["w"] - start["w"])
        if distance > limit:
            kept = min(1 - share, limit / distance)
            now["w"] = start["w"] + kept * (now["w"] - start["w"])
            averaged += 1
    assert 0 < averaged < 6
    for name in SHAPES:
        np.testing.assert_allclose(found[name], now[name], atol=1e-5)
    assert int(state.averaged) == averaged
    assert float(state.distance) == pytest.approx(np.linalg.norm(now["w"] - start["w"]), rel=1e-4)
    assert isinstance(state.initial["rows"], optax.MaskedNode)


def test_one_step_too_long_for_an_average_lands_at_the_distance():
    params = {"w": jnp.ones((2, 2))}
    tx = gj.orbit(optax.sgd(1.0), 1.0)
    updates, state = tx.update({"w": jnp.full((2, 2), -50.0)}, tx.init(params), params)
    np.testing.assert_allclose(updates["w"], 0.5)
    assert float(state.distance) == pytest.approx(1)


@pytest.mark.slow
def test_until_then_updates_are_those_of_the_transform_inside():
    params, tx = make_params(SHAPES), gj.gems(1e-3, num_tasks=2, rank=2)
    grads_of = lambda i: make_grads(i, 2, SHAPES)  # noqa: E731
    plain, _, _ = run(tx, params, grads_of, 2)
    far, state, _ = run(gj.orbit(tx, 1e3), params, grads_of, 2)
    jax.tree.map(np.testing.assert_array_equal, far, plain)
    assert int(state.averaged) == 0
    near, state, _ = run(gj.orbit(tx, 1e-3), params, grads_of, 2)
    assert int(state.averaged) == 2
    moved = jax.tree.map(lambda a, b: np.asarray(a, float) - b, near, params)
    assert float(optax.tree.norm(moved)) <= 1.01e-3


def test_bfloat16_parameters_are_brought_back_by_float32_updates():
    params = {"w": jnp.ones((3, 3), jnp.bfloat16)}
    tx = gj.orbit(optax.sgd(1.0), 0.5)
    updates, state = tx.update({"w": jnp.full((3, 3), 0.25, jnp.bfloat16)}, tx.init(params), params)
    assert updates["w"].dtype == jnp.float32
    np.testing.assert_allclose(updates["w"], -0.125)
    assert state.initial["w"].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_distance": 0.0}, "max_distance is a distance of weights, above 0, got 0.0"),
        ({"max_distance": 1.0, "share": 0.0}, r"in \(0, 1\], got 0.0"),
        ({"max_distance": 1.0, "mask": {"w": False}}, "mask holds none of the parameters"),
        ({"max_distance": 1.0, "mask": [True, True]}, "mask has 2 entries for 1 parameters"),
    ],
    ids=range(4),
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        gj.orbit(optax.sgd(1.0), **options).init({"w": jnp.ones(2)})


def test_the_parameters_are_needed():
    tx = gj.orbit(optax.sgd(1.0), 1.0)
    with pytest.raises(ValueError, match="orbit needs the parameters"):
        tx.update({"w": jnp.ones(2)}, tx.init({"w": jnp.ones(2)}))
