"""What logging, checkpoints and data add to the time of a step: the whole loop beside the compiled step alone.

    OPENBLAS_NUM_THREADS=1 python benchmarks/overhead.py --out benchmarks/results/overhead.json

The model is the demo's scaled to 20 M parameters, with random weights. Alone: the loop's own compiled step on one
batch that stays on the device, called again and again, the device waited for at the end. Loop:
`gems_jax.training.tune.tune` with its data and a line of metrics every ten steps, timed from its third step to the end
of its last. A save is timed by itself, from its call until all of it is on disk, as if nothing of it were done beside
the steps, and its share is that of one every ``--checkpoint-every`` steps. Rounds take turns; medians.
"""

import argparse
import contextlib
import dataclasses
import io
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
from result_file import circumstances, write

from gems_jax.models import load
from gems_jax.training import tune as loop
from gems_jax.training.build import Run, build
from gems_jax.training.checkpoints import Checkpoints
from gems_jax.training.config import Config, DataConfig, ModelConfig, PretrainConfig, TextConfig, TrainConfig
from gems_jax.training.stages import Material, assemble, ensure_base, ensure_data


def configured(root: Path, args: argparse.Namespace) -> Config:
    width = args.width
    shape = PretrainConfig(
        vocab_size=4096, d_model=width, d_kv=32, d_ff=4 * width, num_heads=width // 32, num_layers=args.layers,
        num_decoder_layers=args.layers, steps=1, batch_size=2,
    )  # fmt: skip
    return Config(
        data=DataConfig(dir=str(root / "data")),
        text=TextConfig(eval_batches=1, eval_batch_size=2),
        model=ModelConfig(path=str(root / "base")),
        pretrain=shape,
        gems=dataclasses.replace(Config().gems, null_space=False),
        train=TrainConfig(
            steps=args.steps, batch_size=args.batch_size, log_every=10,
            method="adamw" if args.adamw else "gems",
        ),
    )  # fmt: skip


def alone(run: Run, steps: int) -> float:
    """Seconds a step of the compiled step on one batch; leaves the run as it was but for its parameters."""
    batch = next(run.batches)
    control = run.control(1, 0, False, 0)

    def step() -> Any:
        run.params, run.opt_state, metrics = run.step(run.params, run.opt_state, run.rest, batch, control)
        return metrics

    jax.block_until_ready(step())
    begin = time.perf_counter()
    for _ in range(steps):
        metrics = step()
    jax.block_until_ready((metrics, run.params))
    return (time.perf_counter() - begin) / steps


def in_the_loop(config: Config, material: Material, run: Run, workdir: Path) -> tuple[float, float]:
    """Seconds a step of the whole loop with an already compiled step, and of the save at its end."""
    calls: list[float] = []
    saves: list[float] = []
    step, save = run.step, Checkpoints.save

    def saved(checkpoints: Checkpoints, *parts: Any) -> None:
        jax.block_until_ready(parts[1])
        saves.append(time.perf_counter())
        save(checkpoints, *parts)

    def timed(*operands: Any) -> Any:
        calls.append(time.perf_counter())
        return step(*operands)

    made = dataclasses.replace(run, step=timed)
    make, loop.build = loop.build, lambda *_: made
    Checkpoints.save = saved  # type: ignore[method-assign]
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            loop.tune(config, material, None, workdir)
        end = time.perf_counter()
    finally:
        loop.build, Checkpoints.save = make, save  # type: ignore[method-assign]
    return (saves[0] - calls[2]) / (len(calls) - 2), end - saves[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--checkpoint-every", type=int, default=500)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--adamw", action="store_true", help="joint AdamW instead of GEMS")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    root = Path(tempfile.mkdtemp())
    config = configured(root, args)
    dataset = ensure_data(config)
    material = assemble(config, dataset, load(ensure_base(config)))
    run = build(config, material, None)
    size = sum(x.size for x in jax.tree.leaves((run.params, run.rest)))
    times: dict[str, list[float]] = {"alone": [], "loop": [], "save": []}
    alone(run, 2)
    for number in range(args.rounds):
        times["alone"].append(alone(run, args.steps))
        fresh = build(config, material, None)
        fresh = dataclasses.replace(fresh, step=run.step)
        step_time, save_time = in_the_loop(config, material, fresh, root / f"run{number}")
        times["loop"].append(step_time)
        times["save"].append(save_time)
        shutil.rmtree(root / f"run{number}")
        print({name: f"{values[-1] * 1e3:.1f} ms" for name, values in times.items()}, flush=True)
    medians = {name: statistics.median(values) for name, values in times.items()}
    share = (medians["loop"] + medians["save"] / args.checkpoint_every) / medians["alone"] - 1
    print(f"{size:,} parameters: logging, data and checkpoints add {100 * share:.1f} % to a step")
    if args.out:
        found = {
            "parameters": size, **circumstances("jax", "jaxlib", "optax", device=jax.devices()[0].device_kind),
            "settings": {k: str(v) for k, v in vars(args).items()},
            "milliseconds": {name: [1e3 * v for v in values] for name, values in times.items()}, "overhead": share,
        }  # fmt: skip
        write(found, args.out)
    shutil.rmtree(root)


if __name__ == "__main__":
    main()
