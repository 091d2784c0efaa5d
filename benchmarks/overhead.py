"""The time that logging, checkpoints and data add to a step: the whole loop beside the compiled step alone.

    OPENBLAS_NUM_THREADS=1 python benchmarks/overhead.py --out benchmarks/results/overhead.json

The model is the demo's scaled to 20 M parameters, tuned by GEMS inside a null space; its weights are as good as random,
which takes no time away from a step. One run of `gems_jax.training.tune.tune`, with its data, logged and checkpointed
as often as configurations do by default, is halted between windows of ``--steps`` steps: then the loop's own compiled
step is called as often on a copy of parameters and state, with a batch that stays on the device. So both are measured
in turns, a few seconds apart. The first window, with compilation and the one refresh of the subspaces that there is,
is left out. Each other gives one ratio; what is reported is their median and quartiles, and what part of it is computed
by the step itself for the log alone.

A save is timed by itself, ``--saves`` times, from its call until all of it is on disk, as if nothing of it were done
beside the steps; its share is that of one every ``--checkpoint-every`` steps. By default that is a run's length, since
the default is one checkpoint at the end.
"""

import argparse
import contextlib
import dataclasses
import io
import itertools
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from result_file import circumstances, write

from gems_jax.config.base_model import ModelConfig, NullSpaceConfig, PretrainConfig
from gems_jax.config.data import DataConfig, TextConfig
from gems_jax.config.optimiser import GemsConfig
from gems_jax.config.run import Config
from gems_jax.config.train import TrainConfig
from gems_jax.models import load
from gems_jax.training import tune as loop
from gems_jax.training.build import TrainingRun, build
from gems_jax.training.stages import assemble, ensure_base, ensure_data, ensure_null_space
from gems_jax.training.workdir.checkpoints import Checkpoints


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
        null_space=NullSpaceConfig(path=str(root / "null_space"), batches=4, batch_size=8),
        pretrain=shape,
        gems=GemsConfig(refresh_every=10**6),
        train=TrainConfig(
            # The last steps are logged and saved whatever their number: they lie outside of all windows.
            steps=args.steps * (args.rounds + 1) + 2,
            batch_size=args.batch_size,
            method="adamw" if args.adamw else "gems",
        ),
    )  # fmt: skip


class Alone:
    """The compiled step on a copy of a run's parameters and state, and one batch."""

    def __init__(self, step: Callable[..., Any], operands: tuple[Any, ...]):
        params, state, self._rest, batch, control = jax.tree.map(jnp.copy, operands)
        self._step, self._moving, self._batch = step, (params, state), batch
        measure = jnp.zeros_like(control.measure)
        self._controls = [control._replace(measure=flag) for flag in (measure, ~measure)]

    def seconds(self, steps: int, measured: bool = False) -> float:
        """A step's, the device waited for at the end alone; ``measured``: with what is computed for the log alone."""
        begin = time.perf_counter()
        for _ in range(steps):
            *moving, metrics = self._step(*self._moving, self._rest, self._batch, self._controls[measured])
            self._moving = tuple(moving)
        jax.block_until_ready((metrics, self._moving))
        return (time.perf_counter() - begin) / steps


class Turns:
    """In place of a run's step: lets the loop go for a window of steps, then the step alone, and so on."""

    def __init__(self, step: Callable[..., Any], window: int):
        self._step, self._window = step, window
        self._calls = 0
        self._alone: Alone | None = None
        self.measured: list[float] = []
        self._since = 0.0
        self.loop: list[float] = []
        self.alone: list[float] = []

    def __call__(self, *operands: Any) -> Any:
        if self._alone is None:
            self._alone = Alone(self._step, operands)
        if self._calls % self._window == 0:
            jax.block_until_ready(operands)
            if self._calls:
                self.loop.append((time.perf_counter() - self._since) / self._window)
            self.measured.append(self._alone.seconds(2, measured=True))
            self.alone.append(self._alone.seconds(self._window))
            self._since = time.perf_counter()
        self._calls += 1
        return self._step(*operands)


def in_turns(config: Config, assets: Any, null_space: Any, run: TrainingRun, workdir: Path, window: int) -> Turns:
    """Runs the loop on a run, halted between windows."""
    turns = Turns(run.step, window)
    make, loop.build = loop.build, lambda *_: dataclasses.replace(run, step=turns)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            loop.tune(config, assets, null_space, workdir)
    finally:
        loop.build = make
    return turns


def saves(run: TrainingRun, folder: Path, number: int) -> list[tuple[float, float]]:
    """Seconds until a save returns, and until all of it is on disk, several times."""
    seconds = []
    with Checkpoints(folder) as checkpoints:
        position = {"batches": run.batches.get_state(), "best": {}, "refused": {}}
        for step in range(1, number + 1):
            begin = time.perf_counter()
            checkpoints.save(step, run.params, run.opt_state, position)
            returned = time.perf_counter()
            checkpoints.wait()
            seconds.append((returned - begin, time.perf_counter() - begin))
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20, help="of a window")
    parser.add_argument("--rounds", type=int, default=7, help="windows of each")
    parser.add_argument("--saves", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--checkpoint-every", type=int, default=TrainConfig().steps)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--adamw", action="store_true", help="joint AdamW instead of GEMS")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.steps % TrainConfig().log_every:
        parser.error(f"--steps must be a multiple of {TrainConfig().log_every}: every window has as many logged steps")
    root = Path(tempfile.mkdtemp())
    config = configured(root, args)
    dataset = ensure_data(config)
    base, tokenizer = load(ensure_base(config))
    null_space = None if args.adamw else ensure_null_space(config, base, tokenizer)
    assets = assemble(config, dataset, (base, tokenizer))
    run = build(config, assets, null_space)
    size = sum(x.size for x in jax.tree.leaves((run.params, run.frozen)))
    begin = time.perf_counter()
    turns = in_turns(config, assets, null_space, run, root / "run", args.steps)
    print(f"{len(turns.loop)} windows in {time.perf_counter() - begin:.0f} s")

    # Each of the loop's lies between two of the step alone. The first holds compilation and the first refresh.
    around = [statistics.mean(pair) for pair in itertools.pairwise(turns.alone)]
    windows = list(zip(around, turns.loop, strict=True))[1:]
    fresh = build(config, assets, null_space)
    blocking, whole = (
        statistics.median(times) for times in zip(*saves(fresh, root / "saves", args.saves), strict=True)
    )
    alone = statistics.median(a for a, _ in windows)
    logged = statistics.median(turns.measured[1:]) - alone
    stay = [w / a - 1 for a, w in windows]
    save = whole / args.checkpoint_every / alone
    low, middle, high = statistics.quantiles(stay, n=4, method="inclusive")
    print(f"{size:,} parameters, {1e3 * alone:.0f} ms a step alone")
    print(f"loop, data and log: {100 * middle:+.2f} % (quartiles {100 * low:+.2f} to {100 * high:+.2f})")
    print(f"of it the leak out of the null space: {100 * logged / alone / config.train.log_every:.2f} % "
          f"({1e3 * logged:.0f} ms a logged step)")  # fmt: skip
    print(f"a save: {whole:.2f} s, {blocking:.2f} of them before it returns; every {args.checkpoint_every} steps: "
          f"{100 * save:.2f} %")  # fmt: skip
    print(f"together: {100 * (middle + save):.2f} %")
    result = {
        "parameters": size, **circumstances("jax", "jaxlib", "optax", device=jax.devices()[0].device_kind),
        "settings": {k: str(v) for k, v in vars(args).items() if k != "out"} | {"log_every": config.train.log_every},
        "milliseconds": {"alone": [1e3 * a for a, _ in windows], "loop": [1e3 * w for _, w in windows]},
        "milliseconds_of_a_logged_step_more": 1e3 * logged,
        "save_seconds": {"until it returns": blocking, "until it is on disk": whole},
        "loop_overhead": {"median": middle, "quartiles": [low, high]}, "save_overhead": save,
        "overhead": middle + save,
    }  # fmt: skip
    write(result, args.out)
    shutil.rmtree(root)


if __name__ == "__main__":
    main()
