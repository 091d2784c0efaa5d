"""Small trees, drifting gradients and a jitted loop, shared by the tests of the transform."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gems_jax as gj

SHAPES = {"tall": (12, 6), "wide": (6, 10), "square": (8, 8), "out_bias": (5,)}
SIDES = {"tall": "out", "wide": "in", "square": "in"}


def make_params(shapes=SHAPES, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}


def make_grads(step, num_tasks=2, shapes=SHAPES, dtype=np.float32):
    """Drifting, so that bases of successive refreshes differ but overlap; singular values well apart."""
    grads = {}
    for j, (name, shape) in enumerate(shapes.items()):
        fixed, moving = np.random.default_rng([7, j]), np.random.default_rng([8, j, step])
        g = fixed.normal(size=(num_tasks, *shape)) + 0.3 * moving.normal(size=(num_tasks, *shape))
        if len(shape) == 2:
            g = g * np.geomspace(4, 0.1, shape[1]) * np.geomspace(3, 0.3, shape[0])[:, None]
        grads[name] = g.astype(dtype)
    return grads


def orthonormal(d, k, seed):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(d, k)))[0]


def make_null_space(dims, kept=3, side="in", seed=0):
    """A null space that protects random directions, and these directions in float64."""
    protected = {name: orthonormal(d, kept, [seed, j]) for j, (name, d) in enumerate(dims.items())}
    moments = {name: k @ np.diag(np.arange(1.0, kept + 1)) @ k.T for name, k in protected.items()}
    return gj.NullSpace.from_moments(moments, rank=kept, side=side), protected


def run(tx, params, grads_of, steps, start=0, state=None, **extra):
    """Steps under one jit; returns parameters, state and the updates of every step."""
    params = jax.tree.map(jnp.asarray, params)
    state = jax.jit(tx.init)(params) if state is None else state
    seen = []

    def step(grads, state, params, extra):
        updates, state = tx.update(grads, state, params, **extra)
        return optax.apply_updates(params, updates), state, updates

    step = jax.jit(step)
    for i in range(start, start + steps):
        now = {k: v(i) if callable(v) else v for k, v in extra.items()}
        params, state, updates = step(grads_of(i), state, params, now)
        seen.append(jax.tree.map(np.asarray, updates))
    assert step._cache_size() == 1, "a refresh or a later step compiled again"
    return params, state, seen


def assert_no_leak(updates, null_space, tolerance=1e-5):
    for path, leak in gj.null_space_leak(updates, null_space).items():
        assert leak <= tolerance, (path, float(leak))


def difference(a, b):
    """Largest difference of two trees, relative to the largest entry of the second."""
    return max(
        float(np.max(np.abs(np.asarray(x, float) - np.asarray(y, float))) / max(np.max(np.abs(np.asarray(y))), 1e-30))
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


LOSSES = lambda i: jnp.asarray([1.0 + 0.1 * i, 2.0])  # noqa: E731
COUNTS = lambda i: jnp.asarray([30.0, 10.0 + i])  # noqa: E731
