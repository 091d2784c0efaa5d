"""The released optimiser's conventions in numpy float64, from the formulas alone, on shapes of no stored trajectory."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import heuristic_gates, signed

import gems_jax as gj
from gems_jax.transform.released import released

STEPS, GAP, RANK, SCALE, DECAY, B1, B2, EPS = 7, 3, 5, 0.25, 0.1, 0.9, 0.999, 1e-6
SHAPES = {
    "wide": (9, 14),
    "tall": (15, 4),  # fewer outputs than the rank
    "square": (7, 7),
    "stack": (2, 6, 11),
    "embedding": (13, 5),
    "norm": (9,),
}
KERNELS = ("wide", "tall", "square", "stack")
RATES = 3e-3 * np.cos(np.linspace(0, 1, STEPS))


class Branch:
    """One subspace of one matrix ``[in, out]``: basis, moments in its coordinates, never rotated, never reset."""

    def __init__(self, rank):
        self.rank, self.basis, self.m, self.v = rank, None, 0.0, 0.0

    def direction(self, gradient, t):
        flip = gradient.shape[0] > gradient.shape[1]  # in > out: bases on the output side
        g = gradient.T if flip else gradient
        if self.basis is None or t % GAP == 0:
            self.basis = signed(np.linalg.svd(g, full_matrices=False)[0][:, : self.rank])
        low = self.basis.T @ g
        self.m = B1 * self.m + (1 - B1) * low
        self.v = B2 * self.v + (1 - B2) * low * low
        step = self.basis @ (self.m / (np.sqrt(self.v) + EPS))
        return step.T if flip else step


def follow(params, grads_of, losses, counts, projectors, num_tasks):
    """Parameters after every step."""
    params, seen, gates_seen = {n: p.copy() for n, p in params.items()}, [], []
    branches, plain = {}, {}
    for t in range(1, STEPS + 1):
        grads = grads_of(t - 1)
        weights = counts[t - 1] / counts[t - 1].sum()
        norms = np.sqrt(sum((g.reshape(num_tasks, -1) ** 2).sum(1) for g in grads.values()))
        gates = heuristic_gates(losses[t - 1], norms, counts[t - 1])
        size = RATES[t - 1] * np.sqrt(1 - B2**t) / (1 - B1**t)
        for name, w in params.items():
            merged = np.tensordot(weights, grads[name], 1)
            if name not in KERNELS:
                m, v = plain.get(name, (0.0, 0.0))
                m, v = B1 * m + (1 - B1) * merged, B2 * v + (1 - B2) * merged**2
                plain[name] = (m, v)
                total = m / (np.sqrt(v) + EPS)
            else:
                total = np.zeros_like(w)
                for at in np.ndindex(*w.shape[:-2]):
                    p = projectors[name][at] if name in projectors else np.eye(w.shape[-1])
                    for b in range(1 + num_tasks):
                        rank = RANK if b == 0 else max(1, RANK // 2)
                        branch = branches.setdefault((name, at, b), Branch(rank))
                        gradient = (merged if b == 0 else grads[name][b - 1])[at] @ p
                        total[at] += (1.0 if b == 0 else gates[b - 1]) * SCALE * branch.direction(gradient, t)
            w = w - size * total
            params[name] = w * (1 - RATES[t - 1] * DECAY)
        seen.append(dict(params))
        gates_seen.append(gates)
    return seen, gates_seen


def problem(num_tasks, seed):
    rng = np.random.default_rng([seed, num_tasks])
    params = {n: rng.normal(size=s) for n, s in SHAPES.items()}
    fixed = {n: rng.normal(size=(num_tasks, *s)) for n, s in SHAPES.items()}
    counts = rng.integers(3, 30, size=(STEPS, num_tasks)).astype(float)
    losses = rng.uniform(0.5, 4, size=(STEPS, num_tasks))
    if num_tasks > 1:
        counts[4, 1] = losses[4, 1] = 0  # absent, on a step that refreshes nothing

    def grads_of(i):
        moving = np.random.default_rng([seed, num_tasks, i])
        grads = {n: g + 0.5 * moving.normal(size=g.shape) for n, g in fixed.items()}
        return {n: g * (counts[i] > 0).reshape(-1, *(1,) * (g.ndim - 1)) for n, g in grads.items()}

    def projector(d, kept):
        k = np.linalg.qr(rng.normal(size=(d, kept)))[0]
        return np.eye(d) - k @ k.T

    # Of the outputs; one matrix for a kernel, one each in a stack. All leave room for the rank.
    projectors = {"wide": projector(14, 4), "stack": np.stack([projector(11, 3), projector(11, 5)])}
    return params, grads_of, losses, counts, projectors


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_tasks", "seed", "merged_by_caller", "tolerance"),
    # Weights by counts are float32, so only a gradient merged by the caller is float64 all the way.
    [(2, 0, True, 1e-9), (3, 1, False, 2e-6), (1, 2, True, 1e-9)],
)
def test_every_step_is_that_of_the_released_conventions_in_numpy(num_tasks, seed, merged_by_caller, tolerance):
    params, grads_of, losses, counts, projectors = problem(num_tasks, seed)
    expected, gates = follow(params, grads_of, losses, counts, projectors, num_tasks)
    with jax.enable_x64(True):
        rates = jnp.asarray(RATES)
        tx = released(
            lambda count: rates[count],
            num_tasks=num_tasks,
            rank=RANK,
            gap=GAP,
            scale=SCALE,
            weight_decay=DECAY,
            null_space=projectors,
            matrix_dims=lambda path, leaf: gj.MatrixDims() if path in KERNELS else None,
            eps=EPS,
        )

        def step(grads, state, params, losses, counts):
            own = jax.tree.map(lambda g: jnp.tensordot(counts / counts.sum(), g, 1), grads)
            shared = {"shared_grads": own} if merged_by_caller else {}
            updates, state = tx.update(grads, state, params, task_losses=losses, task_counts=counts, **shared)
            return optax.apply_updates(params, updates), state

        step = jax.jit(step)
        now = jax.tree.map(jnp.asarray, params)
        state = tx.init(now)
        for i in range(STEPS):
            now, state = step(grads_of(i), state, now, jnp.asarray(losses[i]), jnp.asarray(counts[i]))
            np.testing.assert_allclose(state.gates, gates[i], atol=1e-6)
            for name in SHAPES:
                moved = np.max(np.abs(expected[i][name] - params[name]))
                assert np.max(np.abs(now[name] - expected[i][name])) < tolerance * moved, (name, i)
    assert step._cache_size() == 1
