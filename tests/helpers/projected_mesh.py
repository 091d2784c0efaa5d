"""Steps on projected gradients on eight devices and on one: printed as JSON."""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from fake_devices import fake_devices
from jax.sharding import AxisType, NamedSharding, PartitionSpec

AXES = ("task", "data", "fsdp", "tensor")
MESHES = {"data 8": (1, 8, 1, 1), "fsdp 4 x tensor 2": (1, 1, 4, 2), "task 2 x data 4": (2, 4, 1, 1)}
SHAPES = {"up": (32, 48), "down": (48, 32)}
ROWS, STEPS = 32, 4


def loss(params, x):
    return jnp.mean(jnp.square(jnp.tanh(x @ params["up"]) @ params["down"] - jnp.sin(x)))


def all_reduced(text):
    """Entries of the largest array that devices add up."""
    from planning.hlo import parse

    found = [one for some in parse(text).computations.values() for one in some.values()]
    sums = [one for one in found if one.opcode.startswith(("all-reduce", "reduce-scatter"))]
    return max((int(np.prod(shape.dims)) for one in sums for shape in one.shapes), default=0)


def trained(mesh=None):
    import gems_jax as gj

    rng = np.random.default_rng(0)
    params = {name: jnp.asarray(0.3 * rng.normal(size=shape), jnp.float32) for name, shape in SHAPES.items()}
    batches = [jnp.asarray(rng.normal(size=(2, ROWS, 32)), jnp.float32) for _ in range(STEPS)]
    tx, where, task = gj.gems(1e-2, num_tasks=2, rank=4, refresh_every=2), None, None
    if mesh is not None:
        task = "task" if mesh.shape["task"] > 1 else None
        params = jax.device_put(params, NamedSharding(mesh, PartitionSpec("fsdp", "tensor")))
        batches = jax.device_put(batches, NamedSharding(mesh, PartitionSpec(task, ("data", "fsdp"))))
        where = gj.state_sharding(tx, params, task)
    fn = gj.projected_task_grads(loss, tx, spmd_axis_name=task)

    def step(params, state, batch):
        losses, grads = fn(params, state, batch)
        updates, state = tx.update(grads, state, params, task_losses=losses)
        return optax.apply_updates(params, updates), state

    places = None if mesh is None else (jax.tree.map(lambda x: x.sharding, params), where)
    jitted, state = jax.jit(step, out_shardings=places), jax.jit(tx.init, out_shardings=where)(params)
    text = jitted.lower(params, state, batches[0]).compile().as_text()
    for batch in batches:
        params, state = jitted(params, state, batch)
    return jax.device_get(params), text, jitted._cache_size()


def main():
    expected, _, _ = trained()
    found = {}
    for name, sizes in MESHES.items():
        mesh = jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES))
        with jax.set_mesh(mesh):
            params, text, compiled = trained(mesh)
        off = max(float(np.max(np.abs(params[n] - expected[n]))) for n in SHAPES)
        found[name] = {"off": off, "compiled": compiled, "all_reduced": all_reduced(text)}
    print(json.dumps(found))


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[2])]
    fake_devices(8)
    main()
