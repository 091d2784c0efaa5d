"""`optax.adamw` as it is, with the null space behind it: one task, no subspaces, no change of the step.

What changes in the loop:

```diff
-tx = optax.adamw(1e-2)
+null_space = gj.estimate_null_space(model, general, rank=4, params=params, progress=False)
+tx = optax.chain(optax.adamw(1e-2), gj.constrain_to_null_space(null_space))
```

It stands last: Adam's steps and weight decay lead out of the null space, whatever gradient goes in.
"""

import jax
import jax.numpy as jnp
import optax

import gems_jax as gj

keys = jax.random.split(jax.random.key(0), 5)
params = {name: jax.random.normal(key, (16, 16)) / 4 for name, key in zip(("first", "second"), keys, strict=False)}
general = [{"x": jax.random.normal(keys[2], (64, 4)) @ jax.random.normal(keys[3], (4, 16))}]
x = jax.random.normal(keys[4], (64, 16))
batch = {"x": x, "y": jnp.sin(x)}


def model(params, x):
    return jnp.tanh(x @ params["first"]) @ params["second"]


def loss_fn(params, batch):
    return jnp.mean((model(params, batch["x"]) - batch["y"]) ** 2)


null_space = gj.estimate_null_space(model, general, rank=4, params=params, progress=False)
tx = optax.chain(optax.adamw(1e-2), gj.constrain_to_null_space(null_space))
start, state = params, tx.init(params)


@jax.jit
def step(params, state, batch):
    loss, grads = jax.value_and_grad(loss_fn)(params, batch)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state, loss


history = []
for _ in range(40):
    params, state, loss = step(params, state, batch)
    history.append(loss)
moved = jax.tree.map(jnp.subtract, params, start)

leaks = gj.null_space_leak(moved, null_space)
# General inputs lie in the four protected directions of the first layer.
first_layer = jnp.max(jnp.abs(general[0]["x"] @ moved["first"]))
print(f"loss {history[0]} -> {history[-1]}; the first layer's outputs on general inputs moved by {first_layer:.0e}")
print("share of the movement in protected directions:", {path: f"{leak:.0e}" for path, leak in leaks.items()})
assert jnp.all(history[-1] < 0.7 * history[0])
assert max(leaks.values()) <= 1e-5
assert first_layer < 1e-4
