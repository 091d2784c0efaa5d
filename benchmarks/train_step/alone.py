"""A method in a process of its own: compilation, memory, operations; prints JSON.

    python -m benchmarks.train_step.alone "joint AdamW" --size t5-small-8x64

Resident memory is what three steps, two of which refresh, reach at most, beyond what was resident after compilation and
before any array of the model was made.
"""

import argparse
import ctypes
import gc
import json
import re
from pathlib import Path
from typing import Any

from benchmarks.train_step.jax_step import JaxRun
from benchmarks.train_step.methods import NAMES, run_of
from benchmarks.train_step.problem import Problem, add_options, problem_of


def measured_alone(name: str, problem: Problem) -> dict[str, Any]:
    """Sizes and counts of a method that is the only one in this process."""
    run = run_of(name, problem)
    before = start_of_peak()
    run.begin()
    start_of_peak()  # what making the arrays took is no part of a step
    for refresh in (False, run.refreshes, False):
        if refresh:
            run.make_refresh_due()
        run.step()
    grown = None if before is None else resident("VmHWM") - before
    of_program = {"compile_seconds": None, "compiled_bytes": None}
    if isinstance(run, JaxRun):
        of_program = {"compile_seconds": run.compile_seconds, "compiled_bytes": run.compiled_bytes()}
    return {**of_program, "resident_bytes": grown, "state_bytes": run.state_bytes(), "flops": run.flops()}


def start_of_peak() -> int | None:
    """Resident bytes now, from which on the peak is kept; ``None`` where the kernel does not keep it (Linux does)."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what compilation left behind would hide growth
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        return None
    return resident("VmRSS")


def resident(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found.group(1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("method", choices=NAMES)
    add_options(parser)
    args = parser.parse_args()
    print(json.dumps(measured_alone(args.method, problem_of(args))))


if __name__ == "__main__":
    main()
