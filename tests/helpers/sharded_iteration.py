"""Bases by block power iteration on eight devices made of one processor, beside one; run as a program, prints JSON.

A process has its devices for life, so `transform/test_mesh_iteration` runs this in one of its own.
"""

import json
import math
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from fake_devices import fake_devices
from jax.sharding import AxisType, NamedSharding, PartitionSpec

# A stack of two wide kernels and a stack of two tall ones, whose whole members are more than a device's share.
SHAPES = {"up": (2, 64, 128), "down": (2, 128, 64)}
SPECS = {"up": (None, "fsdp", "tensor"), "down": (None, "tensor", "fsdp")}
RANK, TASK_RANK, STEPS = 8, 4, 3  # the first and the third refresh
AXES = ("data", "fsdp", "task", "tensor")
MESHES = {
    "data 8": (8, 1, 1, 1),
    "fsdp 8": (1, 8, 1, 1),
    "fsdp 4 x tensor 2": (1, 4, 1, 2),
    "task 2 x fsdp 4": (1, 4, 2, 1),
}
CASES = {
    # Share of protected directions: their own basis is kept, or that of the null space.
    "protected": {"kept": 0.25},
    "complementary": {"kept": 0.75, "complementary": True, "signs": "align"},
}
# The second case is another program inside the first's: one mesh that splits all axes of a kernel shows it.
RUNS = [*(f"protected, {mesh}" for mesh in MESHES), "complementary, fsdp 4 x tensor 2"]


def transform(kept, **options):
    import gems_jax as gj

    moments = {}
    for number, (name, (count, width, _)) in enumerate(SHAPES.items()):
        x = np.random.default_rng(number).normal(size=(count, 2 * width, width))
        moments[name] = np.einsum("lni,lnj->lij", x, x)
    null_space = gj.NullSpace.from_moments(moments, rank=kept)
    rule = lambda path, leaf: gj.MatrixDims()  # noqa: E731
    tx = gj.gems(
        1e-2, num_tasks=2, rank=RANK, task_rank=TASK_RANK, refresh_every=2, decomposition="subspace",
        null_space=null_space, matrix_dims=rule, weight_decay=0.1, **options,
    )  # fmt: skip
    return tx, null_space


def task_axis(mesh):
    return "task" if mesh.shape["task"] > 1 else None


def stacked(mesh, places):
    """Where gradients of all tasks lie."""
    return {n: NamedSharding(mesh, PartitionSpec(task_axis(mesh), *place.spec)) for n, place in places.items()}


def make_step(tx, mesh, places):
    def step(grads, state, params):
        if mesh is not None:
            grads = jax.lax.with_sharding_constraint(grads, stacked(mesh, places))
        updates, state = tx.update(grads, state, params, task_counts=jnp.asarray([3.0, 1.0]))
        return optax.apply_updates(params, updates), state

    if mesh is None:
        return step

    def inside(*args):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return step(*args)

    return inside


def largest_array(text):
    """Entries of the largest array of a compiled program."""
    from planning.hlo import parse

    found = parse(text).computations.values()
    return max(math.prod(x.dims) for instructions in found for one in instructions.values() for x in one.shapes)


def trained(tx, params, grads, mesh=None, places=None):
    where = None
    if mesh is not None:
        import gems_jax as gj

        params = jax.device_put(params, places)
        where = gj.state_sharding(tx, params, task_axis(mesh))
        grads = [jax.device_put(g, stacked(mesh, places)) for g in grads]
    step = jax.jit(make_step(tx, mesh, places), out_shardings=None if mesh is None else (places, where))
    state = jax.jit(tx.init, out_shardings=where)(params)
    text = step.lower(grads[0], state, params).compile().as_text()
    for number in range(STEPS):
        params, state = step(grads[number], state, params)
    pairs = [] if mesh is None else zip(jax.tree.leaves(state), jax.tree.leaves(where), strict=True)
    stays = all(x.sharding.is_equivalent_to(place, x.ndim) for x, place in pairs)
    return jax.device_get(params), text, {"stays": stays, "compiled": step._cache_size()}


def main():
    from sharded_training import sent

    import gems_jax as gj

    normal = lambda seed, lead=(): {  # noqa: E731
        n: np.random.default_rng([seed, i]).normal(size=(*lead, *s)).astype(np.float32)
        for i, (n, s) in enumerate(SHAPES.items())
    }
    params = {n: 0.1 * x for n, x in normal(0).items()}
    # Gradients of a few directions and noise, so that bases do not depend on rounding.
    sizes = np.geomspace(4, 0.5, 12)
    leading = {
        n: np.einsum("tkpi,i,tkqi->tkpq", x[..., :12], sizes, np.swapaxes(x, -1, -2)[..., :12])
        for n, x in normal(9, (2,)).items()
    }
    grads = [{n: leading[n] + 0.3 * x for n, x in normal(number, (2,)).items()} for number in range(1, 1 + STEPS)]
    found = {}
    for case, options in CASES.items():
        tx, null_space = transform(**options)
        expected, _, _ = trained(tx, params, grads)
        for name, sizes in MESHES.items():
            if f"{case}, {name}" not in RUNS:
                continue
            mesh = jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES))
            places = {n: NamedSharding(mesh, PartitionSpec(*spec)) for n, spec in SPECS.items()}
            moved, text, told = trained(tx, params, grads, mesh, places)
            change = jax.tree.map(lambda a, b: a - b, moved, params)
            leaks = gj.null_space_leak(change, null_space).values()
            found[f"{case}, {name}"] = told | {
                "params": max(float(np.max(np.abs(moved[n] - expected[n]))) for n in SHAPES),
                "moved": max(float(np.max(np.abs(moved[n] - params[n]))) for n in SHAPES),
                "leak": max(float(x) for x in leaks),
                "largest": largest_array(text),
                "sent": sent(text, refresh=True),
            }
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[2])]
    fake_devices(8)
    jax.config.update("jax_platforms", "cpu")
    main()
