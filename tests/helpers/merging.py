"""Baselines by name, on gradients of a few small leaves: the merged gradient of a first step as a row."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gems_jax import baselines

SHAPES = {"w": (4, 3), "stack": (2, 3, 2), "scale": ()}
SIZE = 25
GRADIENT_BASED = ("pcgrad", "cagrad", "mgda", "nash_mtl", "imtl_g", "aligned_mtl", "upgrad")
WITH_LOSSES = ("uncertainty", "dwa")
MERGING = ("joint", *WITH_LOSSES, *GRADIENT_BASED)
ALL = (*MERGING, "galore")
PARAMS = {name: jnp.zeros(shape) for name, shape in SHAPES.items()}


def make(name, num_tasks, inner=None, **options):
    return getattr(baselines, name)(inner or optax.identity(), num_tasks=num_tasks, **options)


def as_tree(jacobian):
    """Rows of ``[T, 25]`` as stacked leaves."""
    ends = np.cumsum([int(np.prod(shape)) for shape in SHAPES.values()])[:-1]
    parts = np.split(np.asarray(jacobian, np.float32), ends, axis=1)
    return {
        name: jnp.asarray(part.reshape(-1, *shape)) for (name, shape), part in zip(SHAPES.items(), parts, strict=True)
    }


def as_row(tree):
    return np.concatenate([np.asarray(tree[name], np.float64).ravel() for name in SHAPES])


def jacobian(num_tasks, seed=0, conflict=0.7):
    """Tasks of different norms that conflict, in float64."""
    rng = np.random.default_rng([seed, num_tasks])
    rows = rng.normal(size=(num_tasks, SIZE))
    rows -= conflict * rows.mean(0) * (num_tasks > 1)
    return rows * rng.uniform(0.3, 2.0, size=(num_tasks, 1))


@functools.cache
def compiled(name, num_tasks, options=()):
    tx = make(name, num_tasks, **dict(options))

    def step(grads, state, losses, counts):
        return tx.update(grads, state, PARAMS, task_losses=losses, task_counts=counts)

    return tx.init(PARAMS), jax.jit(step)


def merged(name, rows, losses=None, counts=None, **options):
    """The merged gradient of one first step, ``[25]`` float64."""
    num_tasks = len(rows)
    state, step = compiled(name, num_tasks, tuple(options.items()))
    losses = np.linspace(1, 2, num_tasks) if losses is None else losses
    counts = np.ones(num_tasks) if counts is None else counts
    return as_row(step(as_tree(rows), state, jnp.asarray(losses, jnp.float32), jnp.asarray(counts, jnp.float32))[0])


def weights_of(update, rows):
    return np.linalg.lstsq(rows.T, update, rcond=None)[0]
