"""Time of a refresh of all bases, and what they capture, beside PyTorch's SVD route, in one run on this machine.

    pip install "torch>=2.6"
    OPENBLAS_NUM_THREADS=1 python benchmarks/refresh.py --out benchmarks/results/refresh.json

The kernels are those of a T5 of T5-small's size (6 + 6 layers, 512 wide, 1,024 gated: 108 kernels), the gradients
those of a recommendation and a search task, recorded twice from one training run, ``--apart`` steps between. The
peer takes one ``torch.linalg.svd`` of the shared and of each task's gradient of every kernel, three a kernel. Ours
is the time of a refresh step of `gems_jax.scale_by_gems` less that of a plain one, so nothing of it is left out.
``subspace`` is warm: its bases come from the gradients ``--apart`` steps before. Captured energy is
``|U^T G|^2`` over the sum of the largest squared singular values, of the bases the update really made.
"""

import argparse
import os
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx
from result_file import circumstances, write

import gems_jax as gj
from gems_jax.data.batching.pipeline import task_batches
from gems_jax.data.batching.prompts import encode_table
from gems_jax.data.sources.synthetic import marketplace
from gems_jax.data.text.small_tokenizer import train_tokenizer
from gems_jax.items import add_item_tokens, grow
from gems_jax.linalg import subspace
from gems_jax.models import T5, T5Config, token_losses

Kernels = dict[str, np.ndarray]


def record(steps: list[int], rows: int, length: int, layers: int) -> tuple[Kernels, list[Kernels]]:
    """Kernels ``[m, n]`` and, at each of the given steps, their gradients ``[2, m, n]``, one entry a layer."""
    dataset = marketplace.load(0, 200)
    prompts = {"rec": "history: {history} next:", "src": "search: {query} history: {history} found:"}
    texts = dataset.titles() + [q for t in dataset.tables.values() for q in t.queries if q]
    tokenizer = train_tokenizer([*texts, *prompts.values()], 1024)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=512, d_kv=64, d_ff=1024, num_layers=layers, num_decoder_layers=layers,
        num_heads=8,
    )  # fmt: skip
    titles = tokenizer(dataset.titles(), add_special_tokens=False)["input_ids"]
    item_tokens = add_item_tokens(tokenizer, dataset.item_ids(), config.vocab_size)
    model = grow(T5.create(config, jax.random.key(0)), titles)
    encoded = {
        task: encode_table(dataset.table("train", task), tokenizer, item_tokens, prompts[task], length)
        for task in prompts
    }
    graph, params = nnx.split(model)

    def loss(params: Any, batch: Any) -> jax.Array:
        logits = nnx.merge(graph, params)(batch["input_ids"], batch["attention_mask"], batch["decoder_input_ids"])
        return gj.token_mean(token_losses(logits, batch["labels"]), batch["label_mask"])

    tx = optax.chain(gj.merge_tasks(), optax.adamw(3e-4))

    @jax.jit
    def step(params: Any, state: Any, batch: Any) -> tuple[Any, Any, jax.Array, Any]:
        losses, grads = gj.task_value_and_grad(loss)(params, batch)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, losses, grads

    state, recorded = tx.init(params), []
    begin = time.perf_counter()
    for number, batch in zip(range(max(steps) + 1), task_batches(encoded, rows, length, seed=0), strict=False):
        batch = {name: jnp.asarray(values) for name, values in batch.items() if name != "row_index"}
        params, state, losses, grads = step(params, state, batch)
        if number in steps:
            recorded.append(by_layer(grads, 1))
        if number % 25 == 0:
            done = time.perf_counter() - begin
            left = done / (number + 1) * (max(steps) - number)
            print(f"training step {number:4d}  losses {np.round(losses, 2)}  {left:4.0f} s left", flush=True)
    return by_layer(params, 0), recorded


def by_layer(tree: Any, leading: int) -> Kernels:
    """The kernels of all layers by name, stacks taken apart."""
    kernels = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = gj.leaf_path(path)
        if name.endswith("kernel"):
            for layer, kernel in enumerate(np.moveaxis(np.asarray(leaf), leading, 0)):
                kernels[name.replace("block", f"block/{layer}")] = kernel
    return kernels


def torch_route(gradients: Kernels, rank: int, threads: int) -> tuple[float, dict[str, list[float]]]:
    """Seconds of three SVDs a kernel, and the squared norms that the best bases capture."""
    torch.set_num_threads(threads)
    best: dict[str, list[float]] = {}
    stacks = {name: [torch.from_numpy(np.array(g)) for g in with_shared(grad)] for name, grad in gradients.items()}
    begin = time.perf_counter()
    for name, stack in stacks.items():
        values = [torch.linalg.svd(g, full_matrices=False)[1] for g in stack]
        best[name] = [float((v[: rank if i == 0 else rank // 2].double() ** 2).sum()) for i, v in enumerate(values)]
    return time.perf_counter() - begin, best


def with_shared(grad: np.ndarray) -> list[np.ndarray]:
    """Shared gradient (equal counts), then the tasks'."""
    return [grad.mean(0), *grad]


def our_route(
    params: Kernels, old: Kernels, new: Kernels, method: str, rank: int, repeats: int
) -> tuple[float, float, float, dict[str, list[float]]]:
    """Seconds of a warm refresh, of the first one and of a plain step; squared norms that the bases capture."""
    tx = gj.scale_by_gems(num_tasks=2, rank=rank, refresh_every=200, decomposition=method)
    update = jax.jit(tx.update)
    state = tx.init(params)
    timed: dict[str, list[float]] = {"first": [], "plain": [], "warm": []}
    compiled = update.lower(old, state, params).compile()
    after_first = None
    for kind, grads in [("first", old)] + [("plain", old)] * (repeats + 1) + [("warm", new)] * repeats:
        before = state if kind != "warm" else after_first._replace(count=jnp.int32(200))
        begin = time.perf_counter()
        _, state = jax.block_until_ready(compiled(grads, before, params))
        timed[kind].append(time.perf_counter() - begin)
        after_first = state if kind == "first" else after_first
    captured = {}
    for name, grad in new.items():
        shared, task = state.shared_basis[name][0], state.task_basis[name][:, 0]
        side_in = shared.shape[0] == grad.shape[1] and grad.shape[1] <= grad.shape[2]
        kept_first = [g if side_in else g.T for g in with_shared(np.asarray(grad))]
        bases = [np.asarray(b, np.float64) for b in (shared, *task)]
        captured[name] = [float(np.sum((b.T @ g) ** 2)) for b, g in zip(bases, kept_first, strict=True)]
    plain = statistics.median(timed["plain"])
    return statistics.median(timed["warm"]) - plain, timed["first"][0] - plain, plain, captured


Peer = dict[int, tuple[float, dict[str, list[float]]]]  # threads -> seconds, squared norms


def compare(params: Kernels, old: Kernels, new: Kernels, peer: Peer, args: argparse.Namespace) -> dict[str, Any]:
    """One row a method for one set of kernels."""
    seconds = {threads: run[0] for threads, run in peer.items()}
    # The peer with the number of threads that suits it best.
    torch_s, best = min(seconds.values()), next(iter(peer.values()))[1]
    rows: dict[str, Any] = {"kernels": len(params), "torch_svd": {"seconds_by_threads": seconds}}
    print(f"  {'torch svd':10s} {torch_s:8.2f} s, seconds by threads: {seconds}", flush=True)
    for method in args.methods:
        warm, first, plain, captured = our_route(params, old, new, method, args.rank, args.repeats)
        shares = np.array([np.divide(captured[name], best[name]) for name in best])
        total = sum(map(sum, captured.values())) / sum(map(sum, best.values()))
        rows[method] = {
            "seconds": warm,
            "first_seconds": first,
            "plain_step_seconds": plain,
            "times_faster_than_torch": torch_s / warm,
            "captured_of_optimum": {"all": total, "mean": float(shares.mean()), "least": float(shares.min())},
        }
        print(
            f"  {method:10s} {warm:8.2f} s  {torch_s / warm:5.1f} x faster (first refresh {first:.2f} s)  captured "
            f"{total:.4f} of the optimum, least of a branch {shares.min():.4f}",
            flush=True,
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rank", type=int, default=128)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--rows", type=int, default=8, help="of each task in a training step")
    parser.add_argument("--length", type=int, default=48, help="tokens of a row")
    parser.add_argument("--start", type=int, default=25, help="step of the first recording")
    parser.add_argument("--apart", type=int, default=200, help="steps between the recordings")
    parser.add_argument(
        "--torch-threads",
        type=int,
        nargs="+",
        default=sorted({1, len(os.sched_getaffinity(0))}),
        help="numbers of threads the peer is timed with, the best of which counts; ours takes all cores",
    )
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--methods", nargs="+", default=["subspace", "eigh", "svd"])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    params, (old, new) = record([args.start, args.start + args.apart], args.rows, args.length, args.layers)

    def six_heads(kernels: Kernels) -> Kernels:
        return {
            name: kernel[..., :384, :] if name.endswith("o/kernel") else kernel[..., :384]
            for name, kernel in kernels.items()
            if "attention/" in name
        }

    def shaped(kernels: Kernels, *shapes: tuple[int, int]) -> Kernels:
        return {n: k for n, k in kernels.items() if k.shape[-2:] in shapes}

    sets = {
        "all": (params, old, new),
        "512x512": tuple(shaped(k, (512, 512)) for k in (params, old, new)),
        "1024x512": tuple(shaped(k, (512, 1024), (1024, 512)) for k in (params, old, new)),
        # The attention of a model with six heads instead of eight.
        "512x384": tuple(shaped(six_heads(k), (512, 384), (384, 512)) for k in (params, old, new)),
    }
    peers = {
        name: {threads: torch_route(new, args.rank, threads) for threads in args.torch_threads}
        for name, (_, _, new) in sets.items()
    }
    rows = {}
    for name, (p, a, b) in sets.items():
        print(f"{name}: {len(p)} kernels", flush=True)
        rows[name] = compare(p, a, b, peers[name], args)
    result = {
        "rows": rows,
        "settings": {k: v for k, v in vars(args).items() if k != "out"},
        "warm_iterations": subspace.WARM_SWEEPS,
        "first_iterations": subspace.COLD_SWEEPS,
        "threads": {
            "torch": args.torch_threads,
            "xla": len(os.sched_getaffinity(0)),
        },
        **circumstances("jax", "jaxlib", "optax", "numpy", "torch", device=jax.devices()[0].device_kind),
    }
    write(result, args.out)


if __name__ == "__main__":
    main()
