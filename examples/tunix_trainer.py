"""tunix's `PeftTrainer`: a subclass whose training step takes a gradient for each task.

What changes in the loop:

```diff
-trainer = PeftTrainer(model, optax.adam(1e-2), TrainingConfig(eval_every_n_steps=100, max_steps=40))
+trainer = TaskTrainer(model, tx, TrainingConfig(eval_every_n_steps=100, max_steps=40))
+class TaskTrainer(PeftTrainer):
+    def _train_step(self, model, optimizer, inputs):
+        graph, params, rest = nnx.split(model, nnx.Param, ...)
+        of_params = lambda params, batch: self.loss_fn(nnx.merge(graph, params, rest, copy=True), **batch)
+        losses, grads = gj.task_value_and_grad(of_params)(params, self.gen_model_input_fn(inputs))
+        optimizer.update(model, grads, task_losses=losses)
+        return losses.mean(), losses, optax.global_norm(grads)
```

tunix needs an environment of its own, see README.md here. `gradient_accumulation_steps` stays unset: it wraps the
transform in `optax.MultiSteps`, which expects gradients without a task axis; `gj.accumulate(tx, k)` takes its place.
"""

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from tunix.sft.peft_trainer import PeftTrainer, TrainingConfig

import gems_jax as gj


class Model(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(16, 16, rngs=rngs)
        self.second = nnx.Linear(16, 16, rngs=rngs)

    def __call__(self, x):
        return self.second(nnx.tanh(self.first(x)))


class TaskTrainer(PeftTrainer):
    def _train_step(self, model, optimizer, inputs):
        graph, params, rest = nnx.split(model, nnx.Param, ...)
        of_params = lambda params, batch: self.loss_fn(nnx.merge(graph, params, rest, copy=True), **batch)  # noqa: E731
        losses, grads = gj.task_value_and_grad(of_params)(params, self.gen_model_input_fn(inputs))
        optimizer.update(model, grads, task_losses=losses)
        return losses.mean(), losses, optax.global_norm(grads)

    def _post_process_train_step(self, losses):
        history.append(losses)


def loss_fn(model, x, y):
    return jnp.mean((model(x) - y) ** 2)


model = Model(nnx.Rngs(0))
keys = jax.random.split(jax.random.key(0), 3)
general = [{"x": jax.random.normal(keys[0], (64, 4)) @ jax.random.normal(keys[1], (4, 16))}]
x = jax.random.normal(keys[2], (2, 64, 16))
batch = {"x": x, "y": jnp.stack([jnp.sin(x[0]), x[1] ** 2 / 4])}

null_space = gj.estimate_null_space(model, general, rank=4, progress=False)
tx = gj.gems(1e-2, num_tasks=2, rank=4, null_space=null_space)
trainer = TaskTrainer(model, tx, TrainingConfig(eval_every_n_steps=100, max_steps=40))

history = []
start = jax.tree.map(jnp.copy, nnx.state(model, nnx.Param))
trainer.with_loss_fn(loss_fn).train([batch] * 40)
moved = jax.tree.map(jnp.subtract, nnx.state(model, nnx.Param), start)

leaks = gj.null_space_leak(moved, null_space)
print(f"losses {history[0]} -> {history[-1]}")
print("share of the movement in protected directions:", {path: f"{leak:.0e}" for path, leak in leaks.items()})
assert jnp.all(history[-1] < 0.7 * history[0])
assert max(leaks.values()) <= 1e-5
