"""Identifiers of many items: time and memory of residual k-means, and what more items would take.

    pip install "scikit-learn>=1.7"
    OPENBLAS_NUM_THREADS=1 python benchmarks/identifiers.py --items 10000 50000 200000 1000000 \\
        --out benchmarks/results/identifiers.json

Embeddings of 384 dimensions are drawn around centres that lie around centres, with noise: seeded, float32. For each
number of items, processes of their own run `gems_jax.identifiers.rkmeans` (three levels of 256) with the separation of
items that collide, and scikit-learn's MiniBatchKMeans, level by level on what the levels before it left. A process's
largest resident memory holds the embeddings, too; ``cpu_seconds``, of all threads, tell the work where others use the
machine at the same time, and include the separation; ``error`` is the share of their variance that is left behind each
level. ``extrapolated`` is a line through the two largest numbers of items that were measured. Below 262,144, the most
that codebooks are fitted on, it should be too much: items beyond take part in fewer passes and are not copied.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from prepare_scale import peak_mib
from result_file import circumstances, write

LEVELS, SIZE = 3, 256


def embeddings(items: int, dimensions: int) -> np.ndarray:
    """Float32 ``[items, dimensions]``: 60 groups of 60 groups of items alike, of uneven sizes."""
    rng = np.random.default_rng(0)
    coarse = rng.normal(size=(60, dimensions)).astype(np.float32)
    fine = 0.7 * rng.normal(size=(60, 60, dimensions)).astype(np.float32)
    rows = rng.normal(scale=0.5, size=(1, dimensions)).astype(np.float32).repeat(items, axis=0)
    for start in range(0, items, 10_000):
        part = rows[start : start + 10_000]
        first, second = (60 * rng.random((2, len(part))) ** 1.5).astype(int)
        part += coarse[first] + fine[first, second]
        part += 0.5 * rng.standard_normal(part.shape, np.float32)
    return rows


def ours(rows: np.ndarray) -> dict[str, Any]:
    """Residual k-means and the separation of items that collide."""
    from gems_jax.identifiers import rkmeans

    start = time.perf_counter()
    ids = rkmeans(rows, LEVELS, SIZE)
    fitted = time.perf_counter()
    apart, moved = ids.without_collisions(rows)
    report, after = ids.report(), apart.report()
    return {
        "seconds": round(fitted - start, 1),
        "reassign_seconds": round(time.perf_counter() - fitted, 1),
        "error": report["error"],
        "in_collisions": report["in_collisions"],
        "moved": moved.moved,
        "spilled": moved.spilled,
        "error_reassigned": after["error"][-1],
        "in_collisions_reassigned": after["in_collisions"],
    }


def scikit_learn(rows: np.ndarray) -> dict[str, Any]:
    """MiniBatchKMeans of each level's residuals, in place."""
    from sklearn.cluster import MiniBatchKMeans

    start = time.perf_counter()
    variance = float(np.square(rows - rows.mean(0)).sum(dtype=np.float64))
    errors = []
    for level in range(LEVELS):
        fit = MiniBatchKMeans(SIZE, random_state=level, n_init=1, batch_size=4096).fit(rows)
        for first in range(0, len(rows), 10_000):
            part = rows[first : first + 10_000]
            part -= fit.cluster_centers_[fit.labels_[first : first + 10_000]].astype(np.float32)
        errors.append(round(float(np.square(rows).sum(dtype=np.float64)) / variance, 6))
    return {"seconds": round(time.perf_counter() - start, 1), "error": errors}


RUNS = {"ours": ours, "scikit_learn": scikit_learn}


def in_process(name: str, items: int, dimensions: int) -> dict[str, Any]:
    """A run in a new process, with its largest resident memory."""
    command = [sys.executable, __file__, "--run-here", name, "--items", str(items), "--dimensions", str(dimensions)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def extrapolated(measured: dict[str, dict[str, Any]], items: int) -> dict[str, Any]:
    """Work and memory of more items, by the line through the two largest that were measured."""
    counts = sorted(map(int, measured))[-2:]
    found: dict[str, Any] = {"from": counts}
    for field in ("cpu_seconds", "peak_mib"):
        low, high = (measured[str(count)]["ours"][field] for count in counts)
        found[field] = round(high + (high - low) / (counts[1] - counts[0]) * (items - counts[1]))
    return found


def main(argv: list[str] | None = None) -> dict[str, Any] | None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[10_000, 50_000, 200_000])
    parser.add_argument("--dimensions", type=int, default=384)
    parser.add_argument("--larger", type=int, nargs="+", default=[1_000_000, 5_000_000], help="to extrapolate to")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--run-here", choices=tuple(RUNS), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.run_here:
        rows = embeddings(args.items[0], args.dimensions)
        before, used = peak_mib(), time.process_time()
        found = RUNS[args.run_here](rows)
        found["cpu_seconds"] = round(time.process_time() - used, 1)
        print(json.dumps(found | {"embeddings_mib": round(before), "peak_mib": round(peak_mib())}))
        return None
    record: dict[str, Any] = {
        **circumstances("jax", "numpy", "scipy", "scikit-learn"),
        "command": " ".join(sys.argv),
        "dimensions": args.dimensions,
        "levels": LEVELS,
        "size": SIZE,
        "by_items": {},
    }
    for items in args.items:
        record["by_items"][str(items)] = {name: in_process(name, items, args.dimensions) for name in RUNS}
        print(json.dumps({items: record["by_items"][str(items)]}), flush=True)
        if len(record["by_items"]) > 1:
            record["extrapolated"] = {str(n): extrapolated(record["by_items"], n) for n in args.larger}
        write(record, args.out)
    return record


if __name__ == "__main__":
    main()
