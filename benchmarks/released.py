"""The default optimiser beside the released one: what it protects, learns, holds and costs, on synthetic layers.

    OPENBLAS_NUM_THREADS=1 python benchmarks/released.py --out benchmarks/results/released.json

Linear layers ``y = x W`` with pretrained-like ``W``, general inputs with a spectrum that falls as a power of the
index, and two regression tasks whose inputs overlap with them. After ``--steps`` updates: how far the layers' outputs
moved on general inputs, ``|x dW| / (|x| |dW|)`` relative to a random update of the same size; the share of the
tasks' excess loss that is left; and, for the first update, a refresh, and for a plain one, the seconds.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from result_file import circumstances, write

import gems_jax as gj

SHAPES = {"square": (128, 128), "wide": (128, 256), "tall": (256, 128)}
TASKS = 2


def problem(seed: int, rows: int = 1024) -> dict[str, Any]:
    """Weights, general inputs and, for each task, inputs and the change of weights that would solve it."""
    rng = np.random.default_rng(seed)
    made: dict[str, Any] = {"params": {}, "general": {}, "inputs": {}, "change": {}}
    for name, (m, n) in SHAPES.items():
        path = f"{name}/kernel"
        rotation = np.linalg.qr(rng.normal(size=(m, m)))[0]
        spectrum = np.arange(1, m + 1) ** -1.0
        draw = lambda scale: (rng.normal(size=(rows, m)) * scale) @ rotation.T  # noqa: B023, E731
        made["params"][path] = rng.normal(size=(m, n)) / np.sqrt(m)
        made["general"][path] = draw(spectrum)
        # Tasks use the general directions a little, and mostly others.
        made["inputs"][path] = np.stack([draw(0.3 * spectrum + rng.permutation(spectrum)) for _ in range(TASKS)])
        made["change"][path] = np.stack([rng.normal(size=(m, n)) / m for _ in range(TASKS)])
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), made)


def loss(params: Any, batch: Any) -> jax.Array:
    """Squared distance of the layers' outputs from those that the task asks for."""
    errors = [
        jnp.mean(jnp.sum((batch["inputs"][p] @ (w - batch["wanted"][p])) ** 2, axis=-1)) for p, w in params.items()
    ]
    return sum(errors, jnp.zeros(()))


def run(tx: optax.GradientTransformationExtraArgs, made: dict[str, Any], steps: int) -> dict[str, float]:
    """Trains with one optimiser and measures."""
    params, batch = made["params"], {"inputs": made["inputs"]}
    batch["wanted"] = {p: made["params"][p] + made["change"][p] for p in params}
    grads_of = gj.task_value_and_grad(loss)

    @jax.jit
    def step(params: Any, state: Any) -> tuple[Any, Any, jax.Array]:
        losses, grads = grads_of(params, batch)
        updates, state = tx.update(grads, state, params, task_losses=losses)
        return optax.apply_updates(params, updates), state, losses

    state = tx.init(params)
    compiled = step.lower(params, state).compile()
    first, seconds = None, []
    for _ in range(steps):
        begin = time.perf_counter()
        params, state, losses = jax.block_until_ready(compiled(params, state))
        seconds.append(time.perf_counter() - begin)
        first = losses if first is None else first
    shifts = []
    for path, weights in params.items():
        x, change = np.asarray(made["general"][path], float), np.asarray(weights - made["params"][path], float)
        # A random change of size |dW| moves the output by |x| |dW| / sqrt(m) on average.
        unit = np.linalg.norm(x) * np.linalg.norm(change) / np.sqrt(len(change))
        shifts.append(np.linalg.norm(x @ change) / unit)
    return {
        "general_shift": float(np.mean(shifts)),
        "loss_left": float(jnp.sum(losses) / jnp.sum(first)),
        "state_bytes": float(sum(leaf.nbytes for leaf in jax.tree.leaves(state))),
        "refresh_seconds": seconds[0],
        "plain_seconds": statistics.median(seconds[1:]),
    }


def methods(made: dict[str, Any], rank: int, rate: float, energy: float) -> dict[str, Any]:
    """The optimisers by name."""
    outputs = {p: np.asarray(x @ made["params"][p], float) for p, x in made["general"].items()}
    inputs = {p: np.asarray(x, float) for p, x in made["general"].items()}
    moments = lambda xs: {p: x.T @ x / len(x) for p, x in xs.items()}  # noqa: E731
    inside = gj.NullSpace.from_moments(moments(inputs), energy=energy)
    outside = gj.NullSpace.from_moments(moments(outputs), energy=energy, side="out")
    common: dict[str, Any] = {"num_tasks": TASKS, "rank": rank}
    return {
        "gems": gj.gems(rate, null_space=inside, **common),
        "gems, output side": gj.gems(rate, null_space=outside, **common),
        "gems, no null space": gj.gems(rate, **common),
        "released": gj.presets.released(rate, null_space=outside, **common),
        "joint AdamW": gj.baselines.joint(optax.adamw(rate, weight_decay=0.0)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--energy", type=float, default=0.95)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    runs: dict[str, list[dict[str, float]]] = {}
    for seed in range(args.seeds):
        made = problem(seed)
        for name, tx in methods(made, args.rank, args.rate, args.energy).items():
            runs.setdefault(name, []).append(run(tx, made, args.steps))
    rows = {}
    for name, results in runs.items():
        rows[name] = {
            key: {"mean": statistics.mean(r[key] for r in results), "sd": statistics.stdev(r[key] for r in results)}
            for key in results[0]
        }
        row = {key: value["mean"] for key, value in rows[name].items()}
        print(
            f"{name:20s} shift {row['general_shift']:.3f}  loss left {row['loss_left']:.3f}  state "
            f"{row['state_bytes'] / 1e3:7.0f} kB  refresh {row['refresh_seconds'] * 1e3:6.1f} ms  plain "
            f"{row['plain_seconds'] * 1e3:5.2f} ms",
            flush=True,
        )
    result = {
        "rows": rows,
        "settings": {k: v for k, v in vars(args).items() if k != "out"},
        "shapes": SHAPES,
        **circumstances("jax", "jaxlib", "optax", "numpy", device=jax.devices()[0].device_kind),
    }
    write(result, args.out)


if __name__ == "__main__":
    main()
