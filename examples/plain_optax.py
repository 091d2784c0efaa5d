"""Plain optax on a tree of arrays: two tasks, and general inputs whose outputs stay where they were.

What changes in the loop:

```diff
-tx = optax.adam(1e-2)
+null_space = gj.estimate_null_space(model, general, rank=4, params=params, progress=False)
+tx = gj.gems(1e-2, num_tasks=2, rank=4, null_space=null_space)
-    loss, grads = jax.value_and_grad(loss_fn)(params, batch)
+    losses, grads = gj.task_value_and_grad(loss_fn)(params, batch)
-    updates, state = tx.update(grads, state, params)
+    updates, state = tx.update(grads, state, params, task_losses=losses)
```

The batch's leaves begin with the task axis, `[T, B, ...]`.
"""

import jax
import jax.numpy as jnp
import optax

import gems_jax as gj

keys = jax.random.split(jax.random.key(0), 5)
params = {name: jax.random.normal(key, (16, 16)) / 4 for name, key in zip(("first", "second"), keys, strict=False)}


def model(params, x):
    return jnp.tanh(x @ params["first"]) @ params["second"]


def loss_fn(params, batch):
    return jnp.mean((model(params, batch["x"]) - batch["y"]) ** 2)


# General inputs vary in 4 of 16 directions, those of the tasks in all of them.
general = [{"x": jax.random.normal(keys[2], (64, 4)) @ jax.random.normal(keys[3], (4, 16))}]
x = jax.random.normal(keys[4], (2, 64, 16))
batch = {"x": x, "y": jnp.stack([jnp.sin(x[0]), x[1] ** 2 / 4])}

null_space = gj.estimate_null_space(model, general, rank=4, params=params, progress=False)
tx = gj.gems(1e-2, num_tasks=2, rank=4, null_space=null_space)
start, state = params, tx.init(params)


@jax.jit
def step(params, state, batch):
    losses, grads = gj.task_value_and_grad(loss_fn)(params, batch)
    updates, state = tx.update(grads, state, params, task_losses=losses)
    return optax.apply_updates(params, updates), state, losses


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
