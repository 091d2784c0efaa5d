"""Three tasks that are not language: a circuit's response, its decay and its phase, from the same measurements.

Joint training sums the three losses. Here each task has its gradient, its own subspace beside the shared one, and a
gate; the third task has a quarter of the rows, and no loss weights are tuned.

What changes in the loop:

```diff
-tx = optax.adam(1e-2)
+tx = gj.gems(1e-2, num_tasks=3, rank=4, task_rank=2)
-    loss, grads = jax.value_and_grad(summed_loss)(params, batch)
+    losses, grads = gj.task_value_and_grad(loss_fn)(params, batch)
-    updates, state = tx.update(grads, state, params)
+    updates, state = tx.update(grads, state, params, task_losses=losses, task_counts=batch["mask"].sum(1))
```

Tasks of fewer rows are padded; the mask leaves the padding out of the mean and of the counts.
"""

import jax
import jax.numpy as jnp
import optax

import gems_jax as gj

keys = jax.random.split(jax.random.key(0), 3)
params = {name: jax.random.normal(key, (12, 12)) / 3 for name, key in zip(("first", "second"), keys, strict=False)}
resistance, capacity, frequency = jax.random.uniform(keys[2], (3, 3, 32), minval=0.3, maxval=2.0)
constant = resistance * capacity
inputs = jnp.stack([resistance, capacity, frequency, *(0.1 * frequency**n for n in range(9))], -1)
response = 1 / jnp.sqrt(1 + (frequency * constant) ** 2)
targets = jnp.stack([response[0], jnp.exp(-1 / constant[1]), jnp.arctan(frequency[2] * constant[2])])
rows = jnp.array([32, 32, 8])
batch = {"x": inputs, "y": targets, "mask": (jnp.arange(32) < rows[:, None]).astype(jnp.float32)}


def loss_fn(params, batch):
    predicted = (jnp.tanh(batch["x"] @ params["first"]) @ params["second"]).mean(-1)
    return gj.token_mean((predicted - batch["y"]) ** 2, batch["mask"])


tx = gj.gems(1e-2, num_tasks=3, rank=4, task_rank=2)
state = tx.init(params)


@jax.jit
def step(params, state, batch):
    losses, grads = gj.task_value_and_grad(loss_fn)(params, batch)
    updates, state = tx.update(grads, state, params, task_losses=losses, task_counts=batch["mask"].sum(1))
    return optax.apply_updates(params, updates), state, losses


history = []
for _ in range(40):
    params, state, losses = step(params, state, batch)
    history.append(losses)

report = gj.diagnostics(state)
print(f"losses {history[0]} -> {history[-1]}")
print(f"gates {report['gates']}, refreshed bases {report['refreshed']}")
assert jnp.all(history[-1] < 0.4 * history[0])
assert jnp.isclose(report["gates"].sum(), 1)
