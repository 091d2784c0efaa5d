"""`nnx.Optimizer`: gems takes the place of optax's transform, and the gradients get a task axis.

What changes in the loop:

```diff
-optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
+null_space = gj.estimate_null_space(model, general, rank=4, progress=False)
+optimizer = nnx.Optimizer(model, gj.gems(1e-2, num_tasks=2, rank=4, null_space=null_space), wrt=nnx.Param)
-    loss, grads = nnx.value_and_grad(loss_fn)(model, batch)
+    graph, params, rest = nnx.split(model, nnx.Param, ...)
+    of_params = lambda params, batch: loss_fn(nnx.merge(graph, params, rest, copy=True), batch)
+    losses, grads = gj.task_value_and_grad(of_params)(params, batch)
-    optimizer.update(model, grads)
+    optimizer.update(model, grads, task_losses=losses)
```

`nnx.value_and_grad` knows one loss; the tasks' gradients come from a function of the parameters.
"""

import jax
import jax.numpy as jnp
from flax import nnx

import gems_jax as gj


class Model(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(16, 16, rngs=rngs)
        self.second = nnx.Linear(16, 16, rngs=rngs)

    def __call__(self, x):
        return self.second(nnx.tanh(self.first(x)))


model = Model(nnx.Rngs(0))
keys = jax.random.split(jax.random.key(0), 3)
general = [{"x": jax.random.normal(keys[0], (64, 4)) @ jax.random.normal(keys[1], (4, 16))}]
x = jax.random.normal(keys[2], (2, 64, 16))
batch = {"x": x, "y": jnp.stack([jnp.sin(x[0]), x[1] ** 2 / 4])}


def loss_fn(model, batch):
    return jnp.mean((model(batch["x"]) - batch["y"]) ** 2)


null_space = gj.estimate_null_space(model, general, rank=4, progress=False)
optimizer = nnx.Optimizer(model, gj.gems(1e-2, num_tasks=2, rank=4, null_space=null_space), wrt=nnx.Param)


@nnx.jit
def step(model, optimizer, batch):
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    of_params = lambda params, batch: loss_fn(nnx.merge(graph, params, rest, copy=True), batch)  # noqa: E731
    losses, grads = gj.task_value_and_grad(of_params)(params, batch)
    optimizer.update(model, grads, task_losses=losses)
    return losses


start = jax.tree.map(jnp.copy, nnx.state(model, nnx.Param))
history = [step(model, optimizer, batch) for _ in range(40)]
moved = jax.tree.map(jnp.subtract, nnx.state(model, nnx.Param), start)

leaks = gj.null_space_leak(moved, null_space)
print(f"losses {history[0]} -> {history[-1]}")
print("share of the movement in protected directions:", {path: f"{leak:.0e}" for path, leak in leaks.items()})
assert jnp.all(history[-1] < 0.7 * history[0])
assert max(leaks.values()) <= 1e-5
