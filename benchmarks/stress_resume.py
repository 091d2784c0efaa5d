"""Kills a run with SIGKILL at random moments, starts it again each time, and compares its end bit for bit.

    python benchmarks/stress_resume.py --kills 20 --seed 0

A fifth of the moments are before the first step (imports, compilation), the others within the next quarter of the
steps; a run that ends before its moment is started anew. Prints how each process ended and exits with 1 if a single bit
differs.
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

import numpy as np

SETTINGS = {
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
    "train.steps": 200,
    "train.batch_size": 8,
    "train.log_every": 1,
    "train.checkpoint_every": 5,
    "train.eval_every": 25,
    "train.eval_rows": 8,
    "train.metric": "eval/general/loss",
    "evaluate.batch_size": 16,
}


def command(root: Path, name: str, *more: str) -> list[str]:
    places = {"data.dir": root / "data", "model.path": root / "base", "null_space.path": root / "null_space"}
    options = [word for key, value in (places | SETTINGS).items() for word in (f"--{key}", str(value))]
    return [sys.executable, "-m", "gems_jax.cli", name, *options, *more]


def environment(root: Path) -> dict[str, str]:
    return os.environ | {
        "OPENBLAS_NUM_THREADS": "1",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(root / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def train(root: Path, workdir: Path, until: float | None) -> int:
    """The exit code of a run that is killed after so many seconds, unless it ends before."""
    with (root / "output.txt").open("a") as output:
        process = subprocess.Popen(
            command(root, "train", "--workdir", str(workdir)), env=environment(root), stdout=output, stderr=output
        )
        try:
            return process.wait(until)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            return process.wait()


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
            found = ocp.StandardCheckpointer().restore((last / part).resolve())
            arrays |= {f"{part}/{name}": np.asarray(value) for name, value in found.items()}
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return arrays, [{key: value for key, value in line.items() if key != "tokens_per_second"} for line in lines]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp())
    for name in ("prepare", "pretrain", "calibrate"):
        subprocess.run(command(root, name), env=environment(root), check=True, stdout=subprocess.DEVNULL)
    train(root, root / "warm", None)
    begin, wall = time.perf_counter(), time.time()
    assert train(root, root / "whole", None) == 0
    whole = time.perf_counter() - begin
    # Written right before the first step.
    start = (root / "whole" / "config.yaml").stat().st_mtime - wall
    print(f"an uninterrupted run takes {whole:.1f} s, the first {start:.1f} s of it before the first step", flush=True)

    rng = random.Random(options.seed)
    killed, ended = 0, False
    while killed < options.kills:
        early = rng.random() < 0.2
        moment = rng.uniform(0, start) if early else start + rng.uniform(0, (whole - start) / 4)
        code = train(root, root / "killed", moment)
        ending = "killed" if code == -signal.SIGKILL else f"ended with {code}"
        print(f"{moment:6.1f} s: {ending}, checkpoints {checkpoints_of(root / 'killed')}", flush=True)
        if code == -signal.SIGKILL:
            killed += 1
        elif code == 0:  # compared, and begun anew
            ended = same(root)
            if not ended:
                return 1
            shutil.rmtree(root / "killed")
        else:
            print((root / "output.txt").read_text()[-3000:])
            return 1
    if train(root, root / "killed", None) != 0 or not same(root):
        print((root / "output.txt").read_text()[-3000:])
        return 1
    print(f"killed {killed} times; the same bits")
    shutil.rmtree(root)
    return 0


def same(root: Path) -> bool:
    (arrays, lines), (wanted, wanted_lines) = contents(root / "killed"), contents(root / "whole")
    differ = [name for name in wanted if name not in arrays or not np.array_equal(arrays[name], wanted[name])]
    if differ or set(arrays) != set(wanted) or lines != wanted_lines:
        print(f"differs: {differ[:5]}, lines the same: {lines == wanted_lines}")
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
