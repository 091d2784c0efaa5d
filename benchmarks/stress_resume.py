"""Kills a run with SIGKILL at random moments, starts it again each time, and compares its end bit for bit.

    python benchmarks/stress_resume.py --kills 20 --seed 0 --out benchmarks/results/stress_resume.json

Among five moments one is before the run has loaded everything (imports, loading), one between that and its first line
of metrics (restoring, compiling), three are some steps on (steps, saves, evaluations), each at a random time between.
They are told by what the run has got done, not by the clock, so that a busy machine does not kill every run before its
first step. A run that ends before its moment is compared, too, and begun anew. Prints how each process ended and exits
with 1 if a single bit differs, or if no run went on from a checkpoint.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from result_file import circumstances, write

SETTINGS: dict[str, int | str] = {
    "data.num_users": 60,
    "text.input_length": 48,
    "text.eval_batches": 1,
    "pretrain.vocab_size": 600,
    "pretrain.d_model": 32,
    "pretrain.d_kv": 8,
    "pretrain.d_ff": 32,
    "pretrain.num_layers": 1,
    "pretrain.num_decoder_layers": 1,
    "pretrain.steps": 4,
    "null_space.batches": 4,
    "null_space.batch_size": 16,
    "items.max_length": 32,
    "gems.refresh_every": 3,
    "train.batch_size": 8,
    "train.log_every": 1,
    "train.checkpoint_every": 5,
    "train.eval_every": 25,
    "train.eval_rows": 8,
    "train.metric": "eval/general/loss",
    "evaluate.batch_size": 16,
}


def command(root: Path, name: str, *more: str) -> list[str]:
    paths = {"data.dir": root / "data", "model.path": root / "base", "null_space.path": root / "null_space"}
    options = [word for key, value in (paths | SETTINGS).items() for word in (f"--{key}", str(value))]
    return [sys.executable, "-m", "gems_jax.cli", name, *options, *more]


def environment(root: Path) -> dict[str, str]:
    return os.environ | {
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",  # what a killed run has said stays
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(root / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


class Moment(NamedTuple):
    """So many seconds after a run has begun (no steps), has loaded everything (0) or has gone so many steps on."""

    steps: int | None
    seconds: float

    def __str__(self) -> str:
        after = {None: "its start", 0: "loading"}.get(self.steps, f"{self.steps} steps")
        return f"{self.seconds:.2f} s after {after}"


class RunProgress:
    """How far a run that is about to start in a work directory has got, by the files that it writes."""

    def __init__(self, workdir: Path):
        self._config, self._metrics = workdir / "config.yaml", workdir / "metrics.jsonl"
        self._before = self._written(self._config)
        self._begin = max(checkpoints_of(workdir), default=0)

    @staticmethod
    def _written(path: Path) -> int:
        return path.stat().st_mtime_ns if path.exists() else 0

    def past(self, moment: Moment) -> bool:
        if moment.steps is None:
            return True
        loaded = self._written(self._config)  # written anew by every run that has loaded everything
        if loaded <= self._before:
            return False
        if moment.steps == 0:
            return True
        if self._written(self._metrics) <= loaded:  # still what a run before it left
            return False
        lines = self._metrics.read_text().splitlines()[:-1]  # the last one may not be whole
        return bool(lines) and json.loads(lines[-1])["step"] >= self._begin + moment.steps


def train(root: Path, workdir: Path, until: Moment | None, limit: float = 1200) -> int:
    """The exit code of a run that is killed at a moment, unless it ends before.

    Args:
      root: holds what the run needs.
      workdir: of the run.
      until: ``None``: it is not killed.
      limit: seconds after which a run that should have ended hangs.
    """
    progress = RunProgress(workdir)
    end = time.monotonic() + limit
    with (root / "output.txt").open("a") as output:
        process = subprocess.Popen(
            command(root, "train", "--workdir", str(workdir)), env=environment(root), stdout=output, stderr=output
        )
        while until is not None and process.poll() is None and time.monotonic() < end and not progress.past(until):
            time.sleep(0.01)
        try:
            return process.wait(end - time.monotonic() if until is None else until.seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            code = process.wait()
            if until is None:
                raise SystemExit(f"a run hung: not done after {limit:.0f} s") from None
            return code


def checkpoints_of(workdir: Path) -> list[int]:
    """Steps of the checkpoints that are in place."""
    return sorted(int(path.name) for path in workdir.glob("checkpoints/*") if path.name.isdigit())


def contents(workdir: Path) -> tuple[dict[str, np.ndarray], list[dict[str, float]]]:
    """All arrays of the last checkpoint, and the lines of metrics without those that tell the time."""
    import orbax.checkpoint as ocp

    step = max(checkpoints_of(workdir))
    last = workdir / "checkpoints" / str(step)
    arrays: dict[str, np.ndarray] = {"step": np.asarray(step)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for part in ("params", "optimiser"):
            restored = ocp.StandardCheckpointer().restore((last / part).resolve())
            arrays |= {f"{part}/{name}": np.asarray(value) for name, value in restored.items()}
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return arrays, [{key: value for key, value in line.items() if key != "tokens_per_second"} for line in lines]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    SETTINGS["train.steps"] = options.steps
    root = Path(tempfile.mkdtemp())
    for name in ("prepare", "pretrain", "calibrate"):
        subprocess.run(command(root, name), env=environment(root), check=True, stdout=subprocess.DEVNULL)
    if train(root, root / "warm", None) != 0:  # fills the folder of compiled programs
        return failed(root)
    begin, wall = time.perf_counter(), time.time()
    if train(root, root / "whole", None) != 0:
        return failed(root)
    whole = time.perf_counter() - begin
    start = (root / "whole" / "config.yaml").stat().st_mtime - wall
    print(f"an uninterrupted run takes {whole:.1f} s, {start:.1f} s of it until it has loaded everything", flush=True)
    step = (whole - start) / options.steps

    rng = random.Random(options.seed)
    moments: list[dict[str, object]] = []
    killed = compared = 0
    while killed < options.kills:
        kind = rng.choice(["start", "loaded", "steps", "steps", "steps"])
        if kind == "steps":
            until = Moment(rng.randint(1, options.steps // 5), rng.uniform(0, step))
        else:
            until = Moment(None, rng.uniform(0, start)) if kind == "start" else Moment(0, rng.uniform(0, start / 2))
        code = train(root, root / "killed", until)
        ending = "killed" if code == -signal.SIGKILL else f"ended with {code}"
        steps = checkpoints_of(root / "killed")
        print(f"{until}: {ending}, checkpoints {steps}", flush=True)
        moments.append({"moment": str(until), "ended": ending, "checkpoints": steps})
        if code == -signal.SIGKILL:
            killed += 1
        elif code != 0:
            return failed(root)
        else:  # compared, and begun anew
            if not same(root):
                return 1
            compared += 1
            shutil.rmtree(root / "killed")
    if train(root, root / "killed", None) != 0 or not same(root):
        return failed(root)
    resumed = (root / "output.txt").read_text().count("train: resuming from step")
    if not resumed:
        print("no run went on from a checkpoint: nothing is shown")
        return 1
    print(
        f"killed {killed} times, went on from a checkpoint {resumed} times, compared {compared + 1} times at the end "
        "of a run: the same bits"
    )
    result = {
        "kills": killed, "went_on_from_a_checkpoint": resumed, "ends_compared": compared + 1, "same_bits": True,
        "steps": options.steps, "seed": options.seed, "uninterrupted_seconds": whole, "moments": moments,
        **circumstances("jax", "jaxlib", "orbax-checkpoint"),
    }  # fmt: skip
    write(result, options.out)
    shutil.rmtree(root)
    return 0


def failed(root: Path) -> int:
    """Shows the end of what the runs said."""
    output = root / "output.txt"
    print(output.read_text()[-3000:] if output.exists() else "")
    print(f"everything is left in {root}")
    return 1


def same(root: Path) -> bool:
    (arrays, lines), (wanted, wanted_lines) = contents(root / "killed"), contents(root / "whole")
    differ = [name for name in wanted if name not in arrays or not np.array_equal(arrays[name], wanted[name])]
    if differ or set(arrays) != set(wanted) or lines != wanted_lines:
        print(f"differs: {differ[:5]}, lines the same: {lines == wanted_lines}")
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
