"""Equinox: a module is a tree with functions in it; what trains is split off, as in its own examples.

What changes in the loop:

```diff
-tx = optax.adam(1e-2)
+null_space = gj.estimate_null_space(forward, general, rank=4, params=params, progress=False)
+tx = gj.gems(1e-2, num_tasks=2, rank=4, null_space=null_space)
-    loss, grads = jax.value_and_grad(loss_fn)(params, batch)
+    losses, grads = gj.task_value_and_grad(loss_fn)(params, batch)
-    updates, state = tx.update(grads, state, params)
+    updates, state = tx.update(grads, state, params, task_losses=losses)
```

Weights of `eqx.nn.Linear` are `[out, in]`; the null space knows it from the pass over general inputs.
"""

import equinox as eqx
import jax
import jax.numpy as jnp

import gems_jax as gj

keys = jax.random.split(jax.random.key(0), 4)
model = eqx.nn.MLP(16, 16, width_size=16, depth=1, activation=jnp.tanh, key=keys[0])
params, static = eqx.partition(model, eqx.is_inexact_array)
general = [{"x": jax.random.normal(keys[1], (64, 4)) @ jax.random.normal(keys[2], (4, 16))}]
x = jax.random.normal(keys[3], (2, 64, 16))
batch = {"x": x, "y": jnp.stack([jnp.sin(x[0]), x[1] ** 2 / 4])}


def forward(params, x):
    return jax.vmap(eqx.combine(params, static))(x)


def loss_fn(params, batch):
    return jnp.mean((forward(params, batch["x"]) - batch["y"]) ** 2)


null_space = gj.estimate_null_space(forward, general, rank=4, params=params, progress=False)
tx = gj.gems(1e-2, num_tasks=2, rank=4, null_space=null_space)
start, state = params, tx.init(params)


@eqx.filter_jit
def step(params, state, batch):
    losses, grads = gj.task_value_and_grad(loss_fn)(params, batch)
    updates, state = tx.update(grads, state, params, task_losses=losses)
    return eqx.apply_updates(params, updates), state, losses


history = []
for _ in range(40):
    params, state, losses = step(params, state, batch)
    history.append(losses)
moved = jax.tree.map(jnp.subtract, params, start)

leaks = gj.null_space_leak(moved, null_space)
print(f"losses {history[0]} -> {history[-1]}")
print("share of the movement in protected directions:", {path: f"{leak:.0e}" for path, leak in leaks.items()})
assert jnp.all(history[-1] < 0.7 * history[0])
assert max(leaks.values()) <= 1e-5
