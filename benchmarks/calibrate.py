"""Time of a calibration pass: ours beside PyTorch with forward hooks, in one run on this machine.

    OPENBLAS_NUM_THREADS=1 python benchmarks/calibrate.py --out benchmarks/results/calibrate.json

The model is a T5 1.1 (by default of the small size) with random weights, a sample ``--length`` tokens for the encoder
and ``--target-length`` for the decoder, without padding, all in float32. Ours: the compiled pass of
`gems_jax.estimate_null_space`, one second moment for each distinct input. The peer: the same model in transformers,
without its output layer, in inference mode; a hook on every ``nn.Linear`` adds ``x^T x`` in place with ``addmm_``, one
matrix a module; a second peer also computes the vocabulary's logits, as a plain call of the model does. Rounds take
turns; medians of ``--rounds`` rounds. The bound is what the products alone take at the fastest product measured here:
those of the forward pass, and of each distinct moment one triangle.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from result_file import circumstances, write

import gems_jax as gj
from gems_jax.null_space.moment_groups import moment_groups
from gems_jax.null_space.moment_pass import as_function, kernel_specs, moment_pass
from gems_jax.null_space.tracing.kernel_inputs import KernelInput, kernel_inputs


def our_pass(args: argparse.Namespace, batch: dict[str, np.ndarray]) -> tuple[Callable[[], Any], list[KernelInput]]:
    """A function that adds the moments of a batch, and the distinct inputs."""
    config = gj.models.T5Config(
        vocab_size=args.vocab_size,
        d_model=args.width,
        d_kv=args.width // args.heads,
        d_ff=args.hidden,
        num_layers=args.layers,
        num_decoder_layers=args.layers,
        num_heads=args.heads,
    )
    model = as_function(gj.models.T5.create(config, jax.random.key(0)))
    specs = kernel_specs(model.params)
    inputs = list(kernel_inputs(model.apply, model.params, batch, specs).inputs)
    start, add = moment_pass(model, specs, "in", inputs, moment_groups(inputs, None)[0])
    sums = start()

    def run() -> None:
        nonlocal sums
        sums = jax.block_until_ready(add(model.params, {k: jnp.asarray(v) for k, v in batch.items()}, sums))

    return run, inputs


def hook_pass(
    args: argparse.Namespace, batch: dict[str, np.ndarray], with_logits: bool
) -> tuple[Callable[[], Any], str]:
    """The same with PyTorch, a hook on every linear module; and how transformers computes attention."""
    config = transformers.T5Config(
        vocab_size=args.vocab_size,
        d_model=args.width,
        d_kv=args.width // args.heads,
        d_ff=args.hidden,
        num_layers=args.layers,
        num_decoder_layers=args.layers,
        num_heads=args.heads,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        use_cache=False,
    )
    cls = transformers.T5ForConditionalGeneration if with_logits else transformers.T5Model
    model = cls(config).eval()
    sums: dict[str, torch.Tensor] = {}

    def hook_of(name: str, width: int) -> Callable[..., None]:
        sums[name] = torch.zeros(width, width)

        def hook(module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            rows = inputs[0].reshape(-1, width)
            sums[name].addmm_(rows.T, rows)

        return hook

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            module.register_forward_pre_hook(hook_of(name, module.in_features))
    tensors = {name: torch.as_tensor(value, dtype=torch.long) for name, value in batch.items()}

    def run() -> None:
        with torch.inference_mode():
            model(**tensors, use_cache=False)

    return run, model.config._attn_implementation


def flops(args: argparse.Namespace, inputs: list[KernelInput]) -> tuple[float, float]:
    """Floating-point operations of one sample: products of the forward pass, triangles of the distinct moments."""
    source, target, width, layers = args.length, args.target_length, args.width, args.layers
    attention = 4 * 2 * width**2
    mlp = 3 * 2 * width * args.hidden
    encoder = source * (attention + mlp) + 4 * source * source * width
    decoder = target * (attention + attention // 2 + mlp) + source * attention // 2
    decoder += 4 * target * target * width + 4 * target * source * width
    moments = 0
    for entry in inputs:
        tokens = source if entry.name.startswith("encoder") or not entry.stack else target
        moments += tokens * entry.dim * (entry.dim + 1) * max(1, len(entry.stack) and entry.stack[0])
    return float(layers * (encoder + decoder)), float(moments)


def peak(repeats: int, size: int = 2048) -> float:
    """The fastest product of float32 matrices, in operations a second."""
    a = np.random.default_rng(0).normal(size=(size, size)).astype(np.float32)
    ours, theirs = jnp.asarray(a), torch.as_tensor(a)
    product = jax.jit(jnp.matmul)
    seconds = [timed(lambda: jax.block_until_ready(product(ours, ours))) for _ in range(repeats)]
    seconds += [timed(lambda: theirs @ theirs) for _ in range(repeats)]
    return 2 * size**3 / min(seconds)


def timed(run: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--vocab-size", type=int, default=32128)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--target-length", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    draw = lambda length: rng.integers(2, args.vocab_size, (args.batch_size, length))  # noqa: E731
    batch = {"input_ids": draw(args.length), "decoder_input_ids": draw(args.target_length)}
    ours, inputs = our_pass(args, batch)
    theirs, attention = hook_pass(args, batch, with_logits=False)
    with_logits, _ = hook_pass(args, batch, with_logits=True)
    passes = {"gems_jax": ours, "torch hooks": theirs, "torch hooks, with logits": with_logits}
    first = {name: timed(run) for name, run in passes.items()}
    seconds: dict[str, list[float]] = {name: [] for name in passes}
    for _ in range(args.rounds):
        for name, run in passes.items():
            seconds[name].append(timed(run))
    best = peak(args.rounds)
    forward, moments = flops(args, inputs)
    rows: dict[str, dict[str, float]] = {}
    for name, times in seconds.items():
        median = statistics.median(times)
        rows[name] = {"samples_per_s": args.batch_size / median, "first_s": first[name], "median_s": median}
        ratio = statistics.median(t / o for t, o in zip(times, seconds["gems_jax"], strict=True))
        rows[name]["time_over_ours"] = ratio
        print(f"{name:26s} {args.batch_size / median:8.2f} samples/s   {ratio:5.2f} x our time", flush=True)
    bound = best / (forward + moments)
    print(f"{'floating-point bound':26s} {bound:8.2f} samples/s   at {best / 1e9:.0f} GFLOP/s")
    result = {
        "rows": rows,
        "bound": {
            "samples_per_s": bound,
            "peak_gflop_per_s": best / 1e9,
            "forward_gflop_per_sample": forward / 1e9,
            "moments_gflop_per_sample": moments / 1e9,
            "our_share": rows["gems_jax"]["samples_per_s"] / bound,
        },
        "settings": {k: v for k, v in vars(args).items() if k != "out"},
        "distinct_inputs": sum(max(1, len(e.stack) and e.stack[0]) for e in inputs),
        "torch_attention": attention,
        "threads": {"torch": torch.get_num_threads(), "jax": len(os.sched_getaffinity(0))},
        **circumstances("jax", "jaxlib", "flax", "torch", "transformers", device=jax.devices()[0].device_kind),
    }
    print(json.dumps(result, indent=1))
    write(result, args.out)


if __name__ == "__main__":
    main()
