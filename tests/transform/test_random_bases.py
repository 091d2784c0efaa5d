"""Bases drawn at random: orthonormal, inside the null space, others at every refresh, the same after a resume."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gems_jax as gj

RULE = lambda path, leaf: gj.MatrixDims() if len(leaf.shape) > 1 else None  # noqa: E731
PARAMS = {
    "a": np.ones((8, 12), np.float32),
    "b": np.ones((8, 12), np.float32),
    "stack": np.ones((2, 8, 12), np.float32),
}


def null_space_of(kept=3):
    rng = np.random.default_rng(0)
    moments = {}
    for name, lead in (("a", ()), ("stack", (2,))):
        x = rng.normal(size=(*lead, kept, 8))
        moments[name] = np.einsum("...ni,...nj->...ij", x, x)
    return gj.NullSpace.from_moments(moments, energy=0.9999)


def protected(null_space, name):
    """``K`` of each matrix, ``[k, 8, c]``."""
    factor = null_space.factors[name]
    assert not factor.complement
    return np.asarray(factor.basis).reshape(-1, 8, factor.basis.shape[-1])


def grads_of(seed):
    rng = np.random.default_rng([1, seed])
    return {name: rng.normal(size=(2, *p.shape)).astype(np.float32) for name, p in PARAMS.items()}


@functools.cache  # a step is compiled once, however many tests take it
def optimiser_and_step(**options):
    standard = {"num_tasks": 2, "rank": 3, "task_rank": 2, "refresh_every": 2, "null_space": null_space_of()}
    tx = gj.scale_by_gems(**(standard | {"matrix_dims": RULE, "decomposition": "random"} | options))
    params = jax.tree.map(jnp.asarray, PARAMS)
    return tx.init(params), jax.jit(lambda g, s: tx.update(g, s, params))


def states_of(seeds, state=None, grads_of=grads_of, **options):
    first, step = optimiser_and_step(**options)
    found, state = [], first if state is None else state
    for seed in seeds:
        updates, state = step(grads_of(seed), state)
        found.append((updates, state))
    return found


def bases_of(state):
    """Every basis, ``[8, r]``, by kernel, branch and place in the stack."""
    found = {}
    for name in PARAMS:
        for i, basis in enumerate(np.asarray(state.shared_basis[name]).reshape(-1, 8, 3)):
            found[name, "shared", i] = basis
        own = np.asarray(state.task_basis[name])
        for t, stack in enumerate(own.reshape(2, -1, 8, 2)):
            found |= {(name, t, i): basis for i, basis in enumerate(stack)}
    return found


def test_bases_are_orthonormal_inside_the_null_space_and_no_two_are_alike():
    null_space = null_space_of()
    run = states_of(range(4))
    spans = []
    for updates, state in run:
        for (name, _, i), basis in bases_of(state).items():
            np.testing.assert_allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=2e-6)
            if name != "b":
                assert np.abs(protected(null_space, name)[i].T @ basis).max() < 2e-6
        assert max(map(float, gj.null_space_leak(updates, null_space).values())) <= 1e-5
    for _, state in (run[0], run[2]):
        spans += [basis @ basis.T for basis in bases_of(state).values()]
    for n, one in enumerate(spans):
        assert all(np.abs(one - other).max() > 1e-2 for other in spans[:n])
    first, second, third, _ = (bases_of(state) for _, state in run)
    for name, basis in first.items():
        np.testing.assert_array_equal(basis, second[name])
        assert np.abs(basis - third[name]).max() > 1e-2


@pytest.mark.slow
def test_they_depend_on_the_seed_the_step_and_the_path_alone_so_that_a_resumed_run_draws_the_same():
    run = states_of(range(4))
    resumed = states_of(range(2, 4), jax.tree.map(jnp.asarray, jax.device_get(run[1][1])))
    jax.tree.map(np.testing.assert_array_equal, resumed[-1], run[-1])
    others = states_of(range(10, 13))[-1][1]  # gradients
    for name, basis in bases_of(run[2][1]).items():
        np.testing.assert_array_equal(bases_of(others)[name], basis)
    reseeded = bases_of(states_of(range(1), seed=1)[0][1])
    assert all(np.abs(basis - reseeded[name]).max() > 1e-2 for name, basis in bases_of(run[0][1]).items())


@pytest.mark.slow
def test_all_directions_of_the_null_space_are_drawn_alike():
    free = np.eye(8) - sum(np.outer(k, k) for k in protected(null_space_of(), "a")[0].T)
    run = states_of(range(300), refresh_every=1)
    mean = np.mean([b @ b.T for _, s in run for (n, _, _), b in bases_of(s).items() if n == "a" and b.shape[1] == 3], 0)
    # Of five directions three are drawn; a mean of 300 has errors of .03.
    np.testing.assert_allclose(mean, 0.6 * free, atol=0.12)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{"complementary": True}, {"signs": "align"}, {"stagger": True}, {"null_space": None}]
)
def test_other_options_hold_for_them(options):
    run = states_of(range(4), **options)
    for _, state in run:
        for (name, branch, i), basis in bases_of(state).items():
            np.testing.assert_allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=2e-6)
            if "complementary" in options and branch != "shared":
                assert np.abs(bases_of(state)[name, "shared", i].T @ basis).max() < 2e-6
    first, last = bases_of(run[0][1]), bases_of(run[3][1])
    assert all(np.abs(basis - last[name]).max() > 1e-2 for name, basis in first.items())


def test_a_task_without_rows_keeps_its_bases_until_it_has_some():
    def absent(seed):
        return {
            name: g * np.array([1, 0], np.float32).reshape(2, *(1,) * (g.ndim - 1))
            for name, g in grads_of(seed).items()
        }

    before = states_of([0], grads_of=absent)[0][1]
    assert not np.any(before.task_basis["a"][1])
    assert np.any(before.task_basis["a"][0])
    assert np.any(states_of([1], before)[0][1].task_basis["a"][1])


@pytest.mark.slow
def test_projected_gradients_draw_the_same_bases_and_make_the_same_updates():
    params = {"a": jnp.asarray(np.random.default_rng(3).normal(size=(8, 6)), jnp.float32)}
    loss = lambda p, x: jnp.mean((x @ p["a"]) ** 2)  # noqa: E731
    # Gates that look at no norms, which the projected path estimates.
    options = {"rank": 3, "task_rank": 2, "refresh_every": 2, "gate": gj.gates.constant([1.0, 1.0])}
    tx = gj.scale_by_gems(num_tasks=2, matrix_dims=RULE, decomposition="random", **options)
    states = [tx.init(params), tx.init(params)]
    both = [gj.projected_task_grads(loss, tx), lambda p, s, x: gj.task_value_and_grad(loss)(p, x)]

    def step(fn):
        def one(state, batch):
            losses, grads = fn(params, state, batch)
            return tx.update(grads, state, params, task_losses=losses)

        return jax.jit(one)

    steps = [step(fn) for fn in both]
    for n in range(3):
        batch = jax.random.normal(jax.random.key(n), (2, 16, 8))
        (low, states[0]), (full, states[1]) = (s(state, batch) for s, state in zip(steps, states, strict=True))
        np.testing.assert_allclose(low["a"], full["a"], atol=2e-5)
        np.testing.assert_allclose(states[0].task_basis["a"], states[1].task_basis["a"], atol=1e-6)
