"""What keeps a model's outputs on general inputs beside a null space: which parameters train, and in how many bits.

    OPENBLAS_NUM_THREADS=1 python benchmarks/guarantee.py --out benchmarks/results/guarantee.json

A network of three layers with biases learns two tasks; its general inputs lie in a quarter of the directions.
``moved``: how far its outputs on general inputs move, as a share of their size; ``leak_of_updates`` and
``leak_stored``: the largest ``|K^T dW| / |dW|`` of all steps and kernels, of the updates and of the change from one
step's parameters to the next's (0 where nothing is protected); ``loss``: the tasks' mean at the end. Mean and standard
deviation over seeds.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from result_file import circumstances, spread_of, write

import gems_jax as gj

WIDTHS = (32, 64, 64, 8)
GENERAL = 8  # directions of general inputs
Params = dict[str, dict[str, jax.Array]]


@dataclass(frozen=True)
class Setting:
    """One row: the optimiser, what is protected and trained, dtypes of parameters and of the pass."""

    energy: float | None = 0.999
    frozen: bool = False
    params: Any = jnp.float32
    compute: Any = jnp.float32
    rate: float = 3e-3
    adamw: bool = False


SETTINGS = {
    "biases train": Setting(),
    "biases frozen": Setting(frozen=True),
    "nothing protected": Setting(energy=None),
    "AdamW": Setting(energy=None, adamw=True),
    "biases frozen, bfloat16 parameters": Setting(frozen=True, params=jnp.bfloat16, compute=jnp.bfloat16),
    "biases frozen, float32 parameters cast to bfloat16": Setting(frozen=True, compute=jnp.bfloat16),
    "biases frozen, rate 1e-4": Setting(frozen=True, rate=1e-4),
    "biases frozen, bfloat16 parameters, rate 1e-4": Setting(
        frozen=True, params=jnp.bfloat16, compute=jnp.bfloat16, rate=1e-4
    ),
}


def network(params: Params, x: jax.Array, dtype: Any = jnp.float32) -> jax.Array:
    """Its pass in a dtype, its outputs in float32."""
    x = x.astype(dtype)
    for i, layer in enumerate(params.values()):
        x = x @ layer["kernel"].astype(dtype) + layer["bias"].astype(dtype)
        x = jnp.tanh(x) if i + 1 < len(params) else x
    return x.astype(jnp.float32)


def draw(key: jax.Array) -> Params:
    keys = jax.random.split(key, 2 * (len(WIDTHS) - 1))
    return {
        f"layer_{i}": {
            "kernel": jax.random.normal(keys[2 * i], (m, n)) / m**0.5,
            "bias": 0.1 * jax.random.normal(keys[2 * i + 1], (n,)),
        }
        for i, (m, n) in enumerate(zip(WIDTHS[:-1], WIDTHS[1:], strict=True))
    }


def measure(setting: Setting, seed: int, steps: int) -> dict[str, float]:
    keys = iter(jax.random.split(jax.random.key(seed), 6))
    params = jax.tree.map(lambda p: p.astype(setting.params), draw(next(keys)))
    general = jax.random.normal(next(keys), (512, GENERAL)) @ jax.random.normal(next(keys), (GENERAL, WIDTHS[0]))
    general = general / GENERAL**0.5
    x = jax.random.normal(next(keys), (2, 256, WIDTHS[0]))
    teachers = jax.vmap(draw)(jax.random.split(next(keys), 2))
    batch = {"x": x, "y": jax.vmap(network)(teachers, x)}

    def loss_fn(params: Params, batch: dict[str, jax.Array]) -> jax.Array:
        return jnp.mean((network(params, batch["x"], setting.compute) - batch["y"]) ** 2)

    null_space = None
    if setting.energy is not None:
        null_space = gj.estimate_null_space(
            network, [{"x": general}], energy=setting.energy, params=params, progress=False
        )
    first = optax.chain(gj.merge_tasks(), optax.adamw(setting.rate))
    if not setting.adamw:
        first = gj.gems(setting.rate, num_tasks=2, rank=0.25, refresh_every=50, null_space=null_space)
    freeze = optax.chain(gj.merge_tasks(), optax.set_to_zero())
    labels = {name: {"kernel": "train", "bias": "freeze" if setting.frozen else "train"} for name in params}
    tx = optax.partition({"train": first, "freeze": freeze}, labels)

    def largest(tree: Params) -> jax.Array:
        leaks = {} if null_space is None else gj.null_space_leak(tree, null_space)
        return jnp.max(jnp.stack([jnp.float32(0), *leaks.values()]))

    def step(carry: tuple[Params, Any], _: None) -> tuple[tuple[Params, Any], tuple[jax.Array, jax.Array]]:
        params, state = carry
        losses, grads = gj.task_value_and_grad(loss_fn)(params, batch)
        updates, state = tx.update(grads, state, params, task_losses=losses)
        moved = optax.apply_updates(params, updates)
        change = jax.tree.map(lambda new, old: new.astype(jnp.float32) - old.astype(jnp.float32), moved, params)
        return (moved, state), (largest(updates), largest(change))

    run = jax.jit(lambda carry: jax.lax.scan(step, carry, length=steps))
    (tuned, _), (leaks, stored) = run((params, tx.init(params)))
    before, after = network(params, general), network(tuned, general)
    return {
        "moved": float(jnp.linalg.norm(after - before) / jnp.linalg.norm(before)),
        "leak_of_updates": float(leaks.max()),
        "leak_stored": float(stored.max()),
        "loss": float(jnp.mean(jax.vmap(loss_fn, (None, 0))(tuned, batch))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3, help="at least 2")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = {}
    for name, setting in SETTINGS.items():
        measured = [measure(setting, seed, args.steps) for seed in range(args.seeds)]
        rows[name] = {key: spread_of([one[key] for one in measured]) for key in measured[0]}
        print(name, rows[name], flush=True)
    result = {
        "rows": rows,
        "settings": {"steps": args.steps, "seeds": list(range(args.seeds)), "widths": WIDTHS, "general": GENERAL},
        "command": " ".join(["python", *sys.argv]),
        **circumstances("jax", "jaxlib", "optax", "numpy", device=jax.devices()[0].device_kind),
    }
    write(result, args.out)


if __name__ == "__main__":
    main()
