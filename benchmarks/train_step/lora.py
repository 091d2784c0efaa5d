"""LoRA on the joint batch: adapters of the rank that GEMS's shared basis has, by AdamW; the kernels stay.

`gems_jax.models.lora` adds the adapters' product to the kernel before the model sees it. So the gradient of the whole
kernel is formed, and summed over data-parallel devices, before the adapters' is made of it. An adapter that is
multiplied with a layer's input needs neither, at the price of more products.
"""

from typing import Any

import jax
import optax

from benchmarks.train_step.jax_step import JaxMethod
from benchmarks.train_step.problem import LEARNING_RATE, Problem
from gems_jax.models import lora


def lora_adamw(problem: Problem) -> JaxMethod:
    tx = optax.adamw(LEARNING_RATE)

    def start(kernels: Any, frozen: Any) -> Any:
        adapters = lora.init(kernels, problem.rank, jax.random.key(0))
        return adapters, tx.init(adapters), (kernels, frozen)

    def step(adapters: Any, state: Any, fixed: Any, batch: Any) -> Any:
        kernels, frozen = fixed

        def loss_of(adapters: Any) -> jax.Array:
            return problem.loss(lora.apply(kernels, adapters, alpha=2.0 * problem.rank), frozen, batch)

        loss, grads = jax.value_and_grad(loss_of)(adapters)
        updates, state = tx.update(grads, state, adapters)
        return optax.apply_updates(adapters, updates), state, loss

    return JaxMethod(start, step, joint=True, refreshes=False)
