"""How long the moments of a large model take to decompose, on one core and on all, and how that grows with their width.

    env OPENBLAS_NUM_THREADS=1 python benchmarks/decompose.py --out benchmarks/results/decompose.json

For each width twice as many random moments as there are cores go through `directions_of`, one at a time and one on
each core, in turns: seconds of wall time for each moment. The exponent of the growth is fitted to the two largest
widths, and with it the hours that the distinct inputs of Qwen3-8B's kernels take (36 layers; three inputs of 4,096 and
one of 12,288).
"""

import argparse
import math
import os
import statistics
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from result_file import circumstances, write

from gems_jax.null_space import directions
from gems_jax.null_space.directions import Rule, directions_of

LAYERS, INPUTS = 36, (4096, 4096, 4096, 12288)
RULE = Rule(energy=0.85, min_share=0.35)


def seconds(moments: list[np.ndarray], at_once: int) -> float:
    """Wall time for each moment."""
    with mock.patch.object(directions, "_at_once", return_value=at_once):
        begin = time.perf_counter()
        directions_of("kernel", iter(moments), len(moments[0]), RULE)
        return (time.perf_counter() - begin) / len(moments)


def row(width: int, cores: int, rounds: int) -> dict[str, Any]:
    rng = np.random.default_rng(width)
    moments = [x @ x.T for x in rng.normal(size=(2 * cores, width, width))]
    found = [(seconds(moments, 1), seconds(moments, cores)) for _ in range(rounds)]
    one, all_cores = (statistics.median(column) for column in zip(*found, strict=True))
    ratios = sorted(one / each for one, each in found)
    return {"width": width, "one_core_s": one, "all_cores_s": all_cores, "faster": [ratios[0], ratios[-1]]}


def hours(rows: list[dict[str, Any]], cores: int) -> dict[str, float]:
    """The exponent of the growth, and what a model of 8 B takes with 1 and with 16 cores."""
    small, large = rows[-2:]
    exponent = math.log(large["one_core_s"] / small["one_core_s"]) / math.log(large["width"] / small["width"])
    of_model = sum(LAYERS * large["one_core_s"] * (d / large["width"]) ** exponent for d in INPUTS) / 3600
    # What a core loses beside others is taken to be as here.
    busy = large["all_cores_s"] * cores / large["one_core_s"]
    return {"exponent": exponent, "one_core_h": of_model, "sixteen_cores_h": of_model * busy / 16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args()
    if os.environ.get("OPENBLAS_NUM_THREADS") != "1":
        raise SystemExit("set OPENBLAS_NUM_THREADS=1, as the command does: LAPACK's own threads would be counted twice")
    if len(args.widths) < 2:
        raise SystemExit("--widths needs two: growth is what lies between them")
    cores = len(os.sched_getaffinity(0))
    rows = []
    for width in sorted(args.widths):
        rows.append(row(width, cores, args.rounds))
        print(rows[-1], flush=True)
    found = hours(rows, cores)
    print(found)
    widths = " ".join(map(str, sorted(args.widths)))
    command = f"env OPENBLAS_NUM_THREADS=1 python benchmarks/decompose.py --widths {widths} --rounds {args.rounds}"
    about = {"cores": cores, "rounds": args.rounds, "circumstances": circumstances("numpy", "jax")}
    write({"command": command, **about, "rows": rows, "qwen3_8b": found}, args.out)


if __name__ == "__main__":
    main()
