"""Kills a run with SIGKILL at random moments, starts it again each time, and compares its end bit for bit.

    python benchmarks/stress_resume.py --kills 20 --seed 0 --out benchmarks/results/stress_resume.json

A fifth of the moments are before the first step (imports, loading), the others fall evenly on the quarter of a run that
follows the moment at which it has loaded everything, however long that took: on restoring, compiling, steps, saves and
evaluations. A run that ends before its moment is compared, too, and begun anew. Prints how each process ended and
exits with 1 if a single bit differs.
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


def train(root: Path, workdir: Path, until: float | None, loaded: bool = False, limit: float = 600) -> int:
    """The exit code of a run that is killed after so many seconds, unless it ends before.

    Args:
      root: holds what the run needs.
      workdir: of the run.
      until: seconds; ``None``: it is not killed.
      loaded: whether they count from the moment at which it has loaded everything, instead of from its start.
      limit: seconds after which a run that should have ended hangs.
    """
    mark = workdir / "config.yaml"  # written anew by every run that has loaded everything
    before = mark.stat().st_mtime_ns if mark.exists() else 0
    end = time.monotonic() + limit
    with (root / "output.txt").open("a") as output:
        process = subprocess.Popen(
            command(root, "train", "--workdir", str(workdir)), env=environment(root), stdout=output, stderr=output
        )
        while loaded and process.poll() is None and not (mark.exists() and mark.stat().st_mtime_ns > before):
            if time.monotonic() > end:
                break
            time.sleep(0.02)
        try:
            return process.wait(limit if until is None else until)
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
            found = ocp.StandardCheckpointer().restore((last / part).resolve())
            arrays |= {f"{part}/{name}": np.asarray(value) for name, value in found.items()}
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

    rng = random.Random(options.seed)
    moments: list[dict[str, object]] = []
    killed = compared = 0
    while killed < options.kills:
        early = rng.random() < 0.2
        seconds = rng.uniform(0, start if early else (whole - start) / 2)
        code = train(root, root / "killed", seconds, loaded=not early)
        ending = "killed" if code == -signal.SIGKILL else f"ended with {code}"
        since = "its start" if early else "loading"
        found = checkpoints_of(root / "killed")
        print(f"{seconds:6.1f} s after {since}: {ending}, checkpoints {found}", flush=True)
        moments.append({"seconds": round(seconds, 2), "after": since, "ended": ending, "checkpoints": found})
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
    print(f"killed {killed} times, compared {compared + 1} times at the end of a run: the same bits")
    result = {
        "kills": killed, "ends_compared": compared + 1, "same_bits": True, "steps": options.steps,
        "seed": options.seed, "uninterrupted_seconds": whole, "moments": moments,
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
