"""Linen's `TrainState`: its `apply_gradients` hands no losses on, so the step calls the transform itself.

What changes in the loop:

```diff
-state = TrainState.create(apply_fn=model.apply, params=params, tx=optax.adam(1e-2))
+null_space = gj.estimate_null_space(forward, general, rank=4, params=params, progress=False)
+tx = gj.gems(1e-2, num_tasks=2, rank=4, null_space=null_space)
+state = TrainState.create(apply_fn=model.apply, params=params, tx=tx)
-    loss, grads = jax.value_and_grad(loss_fn)(state.params, batch)
+    losses, grads = gj.task_value_and_grad(loss_fn)(state.params, batch)
-    return state.apply_gradients(grads=grads), loss
+    updates, opt_state = state.tx.update(grads, state.opt_state, state.params, task_losses=losses)
+    params = optax.apply_updates(state.params, updates)
+    return state.replace(step=state.step + 1, params=params, opt_state=opt_state), losses
```

With `state.apply_gradients(grads=grads)` it works, too: the gate then takes the tasks' losses for equal.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.training.train_state import TrainState

import gems_jax as gj


class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(16)(nn.tanh(nn.Dense(16)(x)))


model = Model()
keys = jax.random.split(jax.random.key(0), 4)
general = [{"x": jax.random.normal(keys[0], (64, 4)) @ jax.random.normal(keys[1], (4, 16))}]
x = jax.random.normal(keys[2], (2, 64, 16))
batch = {"x": x, "y": jnp.stack([jnp.sin(x[0]), x[1] ** 2 / 4])}
params = model.init(keys[3], x[0])["params"]


def forward(params, x):
    return model.apply({"params": params}, x)


def loss_fn(params, batch):
    return jnp.mean((forward(params, batch["x"]) - batch["y"]) ** 2)


null_space = gj.estimate_null_space(forward, general, rank=4, params=params, progress=False)
tx = gj.gems(1e-2, num_tasks=2, rank=4, null_space=null_space)
state = TrainState.create(apply_fn=model.apply, params=params, tx=tx)


@jax.jit
def step(state, batch):
    losses, grads = gj.task_value_and_grad(loss_fn)(state.params, batch)
    updates, opt_state = state.tx.update(grads, state.opt_state, state.params, task_losses=losses)
    params = optax.apply_updates(state.params, updates)
    return state.replace(step=state.step + 1, params=params, opt_state=opt_state), losses


history = []
for _ in range(40):
    state, losses = step(state, batch)
    history.append(losses)
moved = jax.tree.map(jnp.subtract, state.params, params)

leaks = gj.null_space_leak(moved, null_space)
print(f"losses {history[0]} -> {history[-1]}")
print("share of the movement in protected directions:", {path: f"{leak:.0e}" for path, leak in leaks.items()})
assert jnp.all(history[-1] < 0.7 * history[0])
assert max(leaks.values()) <= 1e-5
