"""Steps on eight devices made of one processor, beside the same steps on one; run as a program, prints JSON.

A process has its devices for life, so `transform/test_state_sharding` runs this in one of its own.
"""

import json
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from fake_devices import fake_devices
from jax.sharding import AxisType, NamedSharding, PartitionSpec

SHAPES = {"a": (8, 16), "b": (8, 16), "wide": (16, 8), "stack": (2, 16, 8), "heads": (8, 4, 4), "bias": (16,)}
SPECS = {
    "a": ("fsdp", "tensor"),
    "b": ("fsdp", "tensor"),
    "wide": ("fsdp", "tensor"),
    "stack": (None, "fsdp", "tensor"),
    "heads": ("fsdp", "tensor", None),
    "bias": ("tensor",),
}
MESHES = {"fsdp 8": {"fsdp": 8, "tensor": 1}, "task 2 x fsdp 2 x tensor 2": {"task": 2, "fsdp": 2, "tensor": 2}}
STEPS = 3  # the first and the third refresh


def rule(path, leaf):
    import gems_jax as gj

    if path == "heads":
        return gj.MatrixDims(0, (1, 2))
    return gj.MatrixDims() if len(leaf.shape) > 1 else None


def transform():
    from problems import make_null_space

    import gems_jax as gj

    ns, _ = make_null_space({"a": 8, "wide": 16}, kept=2)
    tx = gj.gems(1e-2, num_tasks=2, rank=4, refresh_every=2, null_space=ns, matrix_dims=rule, weight_decay=0.1)
    return optax.chain(tx, optax.trace(0.5))


def place(mesh):
    return {name: NamedSharding(mesh, PartitionSpec(*spec)) for name, spec in SPECS.items()}


def named(tree):
    """In the boxes that Linen puts around parameters to name their mesh axes."""
    return {name: nn.Partitioned(x, SPECS[name]) for name, x in tree.items()}


def difference(found, expected):
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    return max(float(np.max(np.abs(np.asarray(a) - np.asarray(b)), initial=0)) for a, b in pairs)


def train(init, step, params, grads):
    """Parameters and state at first and after every step, and how often the step was compiled."""
    seen = [(params, init(params))]
    for i in range(STEPS):
        params, state = seen[-1]
        seen.append(step(grads(i), state, params))
    return seen, step._cache_size()


def main():
    from problems import make_grads, make_params

    import gems_jax as gj

    tx, params = transform(), make_params(SHAPES)
    losses, counts = jnp.asarray([1.0, 2.0]), jnp.asarray([30.0, 10.0])

    def step(grads, state, params):
        updates, state = tx.update(grads, state, params, task_losses=losses, task_counts=counts)
        return optax.apply_updates(params, updates), state

    grads_of = lambda i: make_grads(i, shapes=SHAPES)  # noqa: E731
    one = jax.tree.map(jnp.asarray, params)
    expected, _ = train(jax.jit(tx.init), jax.jit(step), one, grads_of)
    found = {}
    for name, sizes in MESHES.items():
        mesh = jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))
        task = "task" if "task" in sizes else None
        boxed = named if task else dict  # the same programs, see test_boxes
        where = boxed(place(mesh))
        placed = jax.device_put(boxed(params), where)
        of_state = gj.state_sharding(tx, placed, task_axis=task)
        stacked = {n: NamedSharding(mesh, PartitionSpec(task, *spec)) for n, spec in SPECS.items()}
        sharded = jax.jit(step, out_shardings=(where, of_state))
        init = jax.jit(tx.init, out_shardings=of_state)
        grads = lambda i: boxed(jax.device_put(grads_of(i), stacked))  # noqa: B023, E731
        seen, compiled = train(init, sharded, placed, grads)
        by_name = nn.get_sharding(jax.eval_shape(tx.init, placed), mesh)
        lying = jax.jit(tx.init, out_shardings=by_name)(placed)
        lies = lambda state: all(  # noqa: E731
            x.sharding.is_equivalent_to(s, x.ndim)
            for x, s in zip(jax.tree.leaves(state), jax.tree.leaves(of_state), strict=True)  # noqa: B023
        )
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), placed)
        basis = seen[-1][1][0][0].task_basis["stack"]
        found[name] = {
            "params": [difference(a[0], b[0]) for a, b in zip(seen, expected, strict=True)],
            "bases": difference(seen[-1][1][0][0].shared_basis, expected[-1][1][0][0].shared_basis),
            "as asked": [lies(state) for _, state in seen],
            "compiled": compiled,
            "moved": difference(seen[-1][0], params),
            "bias's moments by name": str(jax.tree.leaves(lying[0][0].fallback.mu)[0].addressable_shards[0].data.shape),
            "abstract is the same": gj.state_sharding(tx, abstract, task_axis=task) == of_state,
            "held of a task basis": basis.addressable_shards[0].data.size / basis.size,
        }
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[2])]
    fake_devices(8)
    jax.config.update("jax_platforms", "cpu")
    main()
