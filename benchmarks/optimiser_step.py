"""Time of one optimiser update: GEMS beside optax's AdamW and GaLore, in one run on this machine.

    OPENBLAS_NUM_THREADS=1 python benchmarks/optimiser_step.py --out benchmarks/results/optimiser_step.json

The parameters are the kernels of a T5 1.1 of the given size, one leaf a layer (GaLore takes no stacks). AdamW and
GaLore get the merged gradient, GEMS those of two tasks. Medians of ``--repeats`` updates, ratios against AdamW.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from result_file import circumstances, write

import gems_jax as gj


def kernels(layers: int, width: int, hidden: int) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
    """Shapes of the kernels of a T5 1.1 with as many decoder as encoder layers."""
    square, up, down = (width, width), (width, hidden), (hidden, width)
    tree: dict[str, Any] = {}
    for side, attentions in (("encoder", ("attention",)), ("decoder", ("self_attention", "cross_attention"))):
        for layer in range(layers):
            block = {f"{a}/{k}": square for a in attentions for k in "qkvo"} | {"wi_0": up, "wi_1": up, "wo": down}
            tree[f"{side}/{layer}"] = {k: {"kernel": v} for k, v in block.items()}
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s, jnp.float32), tree, is_leaf=lambda x: isinstance(x, tuple))


def measure(update: Callable[..., Any], grads: Any, state: Any, params: Any, repeats: int) -> tuple[float, float]:
    """Seconds of the first update after compilation (a refresh, where there is one) and the median of the others."""
    compiled = jax.jit(update).lower(grads, state, params).compile()
    begin = time.perf_counter()
    _, state = jax.block_until_ready(compiled(grads, state, params))
    first = time.perf_counter() - begin
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        _, state = jax.block_until_ready(compiled(grads, state, params))
        times.append(time.perf_counter() - begin)
    return first, statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--rank", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    shapes = kernels(args.layers, args.width, args.hidden)
    leaves, treedef = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    draw = lambda lead: treedef.unflatten(  # noqa: E731
        [jax.random.normal(k, (*lead, *s.shape)) for k, s in zip(keys, leaves, strict=True)]
    )
    params, merged, stacked = draw(()), draw(()), draw((2,))
    methods: dict[str, tuple[optax.GradientTransformation, Any]] = {
        "optax.adamw": (optax.adamw(1e-3), merged),
        "optax.contrib.galore": (
            optax.contrib.galore(1e-3, rank=args.rank, update_proj_gap=10_000),
            merged,
        ),
        "gems (eigh)": (
            gj.gems(1e-3, num_tasks=2, rank=args.rank, refresh_every=10_000, decomposition="eigh"),
            stacked,
        ),
        "gems (subspace)": (
            gj.gems(1e-3, num_tasks=2, rank=args.rank, refresh_every=10_000, decomposition="subspace"),
            stacked,
        ),
    }
    rows = {}
    for name, (tx, grads) in methods.items():
        first, median = measure(tx.update, grads, tx.init(params), params, args.repeats)
        rows[name] = {"first_s": first, "median_s": median}
        print(f"{name:22s} refresh {first:8.3f} s   plain {median * 1e3:8.1f} ms", flush=True)
    base = rows["optax.adamw"]["median_s"]
    for row in rows.values():
        row["plain_over_adamw"] = row["median_s"] / base
    result = {
        "rows": rows,
        "settings": {k: v for k, v in vars(args).items() if k != "out"},
        "kernels": len(leaves),
        **circumstances("jax", "jaxlib", "optax", "numpy", device=jax.devices()[0].device_kind),
    }
    print(json.dumps(result, indent=1))
    write(result, args.out)


if __name__ == "__main__":
    main()
