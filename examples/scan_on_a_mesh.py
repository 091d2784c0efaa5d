"""`lax.scan` over steps, on a mesh of 8 devices: kernels and optimiser state lie in parts, rows are spread.

What changes in the loop:

```diff
-tx = optax.adam(1e-2)
+tx = gj.gems(1e-2, num_tasks=2, rank=4, decomposition="subspace")
-    loss, grads = jax.value_and_grad(loss_fn)(params, batch)
+    losses, grads = gj.task_value_and_grad(loss_fn)(params, batch)
-    updates, state = tx.update(grads, state, params)
+    updates, state = tx.update(grads, state, params, task_losses=losses)
-state_shardings = jax.tree.map(lambda leaf: leaf.sharding, tx.init(params))
+state_shardings = gj.state_sharding(tx, params)
```

Where there are not 8 devices, they are made of the processor.
"""

import os

# Before JAX makes its devices; eight that wait for each other need threads enough.
os.environ.setdefault("NPROC", "32")

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import gems_jax as gj

jax.config.update("jax_num_cpu_devices", 8)
mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Auto,))
keys = jax.random.split(jax.random.key(0), 3)
split = NamedSharding(mesh, PartitionSpec("fsdp"))
params = {name: jax.random.normal(key, (16, 16)) / 4 for name, key in zip(("first", "second"), keys, strict=False)}
params = jax.device_put(params, split)
x = jax.random.normal(keys[2], (10, 2, 64, 16))  # [steps, T, B, ...]
batches = {"x": x, "y": jnp.sin(x)}
batches = jax.device_put(batches, NamedSharding(mesh, PartitionSpec(None, None, "fsdp")))


def loss_fn(params, batch):
    return jnp.mean((jnp.tanh(batch["x"] @ params["first"]) @ params["second"] - batch["y"]) ** 2)


tx = gj.gems(1e-2, num_tasks=2, rank=4, decomposition="subspace")


def step(carry, batch):
    params, state = carry
    losses, grads = gj.task_value_and_grad(loss_fn)(params, batch)
    updates, state = tx.update(grads, state, params, task_losses=losses)
    return (optax.apply_updates(params, updates), state), losses


state_shardings = gj.state_sharding(tx, params)
param_shardings = jax.tree.map(lambda leaf: leaf.sharding, params)
state = jax.jit(tx.init, out_shardings=state_shardings)(params)
steps = jax.jit(
    lambda params, state, batches: jax.lax.scan(step, (params, state), batches),
    out_shardings=((param_shardings, state_shardings), None),
    donate_argnums=(0, 1),
)

history = []
for _ in range(4):
    (params, state), losses = steps(params, state, batches)
    history.append(losses)

print(f"losses {history[0][0]} -> {history[-1][-1]} on {mesh.size} devices")
assert jnp.all(history[-1][-1] < 0.7 * history[0][0])
assert params["first"].sharding.is_equivalent_to(split, 2)  # every device has kept its part
assert steps._cache_size() == 1  # and no round was compiled again
