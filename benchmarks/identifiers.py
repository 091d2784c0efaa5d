"""Identifiers of many items: time and memory of residual k-means, and what more items would take.

    pip install "scikit-learn>=1.7"
    OPENBLAS_NUM_THREADS=1 python benchmarks/identifiers.py --items 10000 50000 200000 1000000 \\
        --out benchmarks/results/identifiers.json

    OPENBLAS_NUM_THREADS=1 python benchmarks/identifiers.py --runs balanced ours --items 25000 100000 \\
        --out benchmarks/results/identifiers_balanced.json
    OPENBLAS_NUM_THREADS=1 python benchmarks/identifiers.py --data PATH --factors 1 1.2 1.5 2 \\
        --out benchmarks/results/identifiers_capacity.json

Embeddings of 384 dimensions are drawn around centres that lie around centres, with noise: seeded, float32. For each
number of items, processes of their own run `gems_jax.identifiers.rkmeans` (three levels of 256) with the separation of
items that collide, the same with a capacity of 1.5 times an even share (``balanced``), and scikit-learn's
MiniBatchKMeans, level by level on what the levels before it left. A process's largest resident memory holds the
embeddings, too; ``cpu_seconds``, of all threads, tell the work where others use the machine at the same time, and
include the separation; ``error`` is the share of their variance that is left behind each level. ``extrapolated`` is,
for the first of ``--runs``, a line through the two largest numbers of items that were measured. Below 262,144, the most
that codebooks are fitted on, it should be too much: items beyond take part in fewer passes and are not copied.

With ``--data``, the folder of Amazon "Industrial & Scientific" (docs/data.md), the embeddings are those of its items'
texts, TF-IDF in 128 dimensions as in leaderboard.py, and codes are made without a capacity and with each of
``--factors`` times an even share.
"""

import argparse
import functools
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from prepare_scale import peak_mib
from result_file import circumstances, write

LEVELS, SIZE, CAPACITY_FACTOR = 3, 256, 1.5


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


def ours(rows: np.ndarray, capacity_factor: float | None = None) -> dict[str, Any]:
    """Residual k-means and the separation of items that collide."""
    from gems_jax.identifiers import rkmeans

    start = time.perf_counter()
    ids = rkmeans(rows, LEVELS, SIZE, capacity_factor=capacity_factor)
    fitted = time.perf_counter()
    apart, moved = ids.without_collisions(rows)
    report, after = ids.report(), apart.report()
    return {
        "seconds": round(fitted - start, 1),
        "reassign_seconds": round(time.perf_counter() - fitted, 1),
        "error": report["error"],
        "largest": report["largest"],
        "entropy_bits": report["entropy_bits"],
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


def by_factor(folder: Path, factors: list[float]) -> dict[str, dict[str, Any]]:
    """Codes of real items, without a capacity and with some."""
    from leaderboard import tfidf

    from gems_jax.data.sources import amazon_scientific

    rows = tfidf([item.search_text for item in amazon_scientific.load(folder).items])
    found = {}
    for factor in (None, *factors):
        used = time.process_time()
        found[str(factor)] = ours(rows, factor) | {"cpu_seconds": round(time.process_time() - used, 1)}
        print(json.dumps({factor: found[str(factor)]}), flush=True)
    return found


RUNS = {
    "ours": ours,
    "scikit_learn": scikit_learn,
    "balanced": functools.partial(ours, capacity_factor=CAPACITY_FACTOR),
}


def in_process(name: str, items: int, dimensions: int) -> dict[str, Any]:
    """A run in a new process, with its largest resident memory."""
    command = [sys.executable, __file__, "--run-here", name, "--items", str(items), "--dimensions", str(dimensions)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def extrapolated(measured: dict[str, dict[str, Any]], name: str, items: int) -> dict[str, Any]:
    """Work and memory of more items, by the line through the two largest that were measured."""
    counts = sorted(map(int, measured))[-2:]
    found: dict[str, Any] = {"from": counts}
    for field in ("cpu_seconds", "peak_mib"):
        low, high = (measured[str(count)][name][field] for count in counts)
        found[field] = round(high + (high - low) / (counts[1] - counts[0]) * (items - counts[1]))
    return found


def main(argv: list[str] | None = None) -> dict[str, Any] | None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[10_000, 50_000, 200_000])
    parser.add_argument("--runs", choices=tuple(RUNS), nargs="+", default=["ours", "scikit_learn"])
    parser.add_argument("--dimensions", type=int, default=384)
    parser.add_argument("--larger", type=int, nargs="+", default=[1_000_000, 5_000_000], help="to extrapolate to")
    parser.add_argument("--data", type=Path, help="real items, see above")
    parser.add_argument("--factors", type=float, nargs="+", default=[1.0, 1.2, 1.5, 2.0])
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
    about = circumstances("jax", "numpy", "scipy", "scikit-learn")
    if args.data is not None:
        command = " ".join("PATH" if word == str(args.data) else word for word in sys.argv)
        real = about | {"command": command, "levels": LEVELS, "size": SIZE, "embeddings": "TF-IDF in 128 dimensions"}
        real["by_factor"] = by_factor(args.data, args.factors)
        write(real, args.out)
        return real
    record: dict[str, Any] = {
        **about,
        "command": " ".join(sys.argv),
        "dimensions": args.dimensions,
        "levels": LEVELS,
        "size": SIZE,
        "capacity_factor": CAPACITY_FACTOR if "balanced" in args.runs else None,
        "by_items": {},
    }
    for items in args.items:
        record["by_items"][str(items)] = {name: in_process(name, items, args.dimensions) for name in args.runs}
        print(json.dumps({items: record["by_items"][str(items)]}), flush=True)
        if len(record["by_items"]) > 1:
            record["extrapolated"] = {str(n): extrapolated(record["by_items"], args.runs[0], n) for n in args.larger}
        write(record, args.out)
    return record


if __name__ == "__main__":
    main()
