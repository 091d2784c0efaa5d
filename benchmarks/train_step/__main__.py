"""One training step of two tasks, by every method: time, memory, operations, communication.

    OPENBLAS_NUM_THREADS=1 python -m benchmarks.train_step --out benchmarks/results/train_step.json
    python -m benchmarks.train_step --size t5-small-16x128 --methods "joint AdamW" "GEMS, full gradients" --parts turns

Joint AdamW, GaLore (optax) and LoRA train on the joint batch, GEMS on each task's; in PyTorch AdamW, and a step as the
authors' released code takes it. ``alone``: compilation, memory and operations of a method in a process of its own;
``devices``: bytes sent between eight data-parallel devices, of the compiled program; ``turns``: seconds a step, all
methods in one process in turns, and the ratio to joint AdamW's round by round. CPU seconds count on a busy machine.
The operations are those of matrix products; bases are decomposed by others, which are not counted.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax

from benchmarks.result_file import circumstances, write
from benchmarks.train_step.devices import DEVICES
from benchmarks.train_step.methods import JAX, NAMES, TORCH, missing, run_of
from benchmarks.train_step.problem import REFRESH_EVERY, add_options, problem_of
from benchmarks.train_step.table import table
from benchmarks.train_step.turns import in_turns, summary

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("alone", "devices", "turns")


def in_process_of_its_own(part: str, method: str, args: argparse.Namespace) -> Any:
    """What `alone.py` or `devices.py` prints."""
    command = [sys.executable, "-m", f"benchmarks.train_step.{part}", method, "--size", args.size]
    for name in ("rank", "protected", "remat"):
        value = getattr(args, name)
        command += [] if value is None else [f"--{name}", str(value)]
    environment = dict(os.environ)
    if part == "devices":
        flags = f"{environment.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={DEVICES}"
        environment |= {"XLA_FLAGS": flags.strip(), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--methods", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help=f"of {NAMES}")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--rounds", type=int, default=21, help="plain steps of each method")
    parser.add_argument("--refreshes", type=int, default=1, help="of each method that has them")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    begin = time.perf_counter()
    problem = problem_of(args)
    rows: dict[str, dict[str, Any]] = {}
    for name in args.methods:
        reason = missing(name)
        rows[name] = {} if reason is None else {"missing": reason}
    here = [name for name, row in rows.items() if not row]
    for name in here:
        if "alone" in args.parts:
            rows[name] |= in_process_of_its_own("alone", name, args)
        if "devices" in args.parts and name in JAX:
            rows[name]["sent_bytes"] = in_process_of_its_own("devices", name, args)
        print(f"{name}: {rows[name]}", file=sys.stderr, flush=True)
    if "turns" in args.parts:
        runs = {name: run_of(name, problem) for name in here}
        for run in runs.values():
            run.begin()
        for name, seconds in summary(in_turns(runs, args.rounds, args.refreshes)).items():
            rows[name]["seconds"] = seconds
    print(table(rows))
    versions = ["jax", "jaxlib", "flax", "optax"]
    versions += ["torch", "transformers"] if any(name in TORCH for name in here) else []
    result = {
        "rows": rows,
        "settings": {k: v for k, v in vars(args).items() if k != "out"}
        | {"rank": problem.rank, "task_rank": problem.task_rank, "refresh_every": REFRESH_EVERY},
        "seconds": round(time.perf_counter() - begin, 1),
        "command": f"python -m benchmarks.train_step {shlex.join(sys.argv[1:])}",
        **circumstances(*versions, device=jax.devices()[0].device_kind),
    }
    write(result, args.out)


if __name__ == "__main__":
    main()
