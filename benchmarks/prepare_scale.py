"""Preparing generated interactions by the million: time of each stage, memory, and what a restart costs.

    OPENBLAS_NUM_THREADS=1 python benchmarks/prepare_scale.py --rows 1000000 10000000 \\
        --out benchmarks/results/prepare_scale.json

For each number of rows a log is written first (seeded, in blocks, so that it may be larger than memory): users and
items by a power law, in the table format, one file or several. Then `prepare` reads it in a process of its own, whose
largest resident memory is what is reported; the log's making does not count. With `--kill 0.4` another process
prepares it anew, is killed when it has done this share of its shards, and started again: the time of the second start
is what a restart costs, and both datasets must have the same bytes.
"""

import argparse
import datetime
import hashlib
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

START = 1_600_000_000
BLOCK = 500_000
COLUMNS = ("user_id", "task", "target", "query", "timestamp")


def blocks(rows: int, seed: int) -> Iterator[dict[str, np.ndarray]]:
    """The log in blocks, in the order of time; about 100 events a user, two thirds of them recommendations."""
    rng = np.random.default_rng(seed)
    users, items = max(10, rows // 100), max(100, int(rows**0.7))
    for first in range(0, rows, BLOCK):
        count = min(BLOCK, rows - first)
        user = (users * rng.random(count) ** 1.5).astype(np.int64)
        item = (items * rng.random(count) ** 2).astype(np.int64)
        search = rng.random(count) < 1 / 3
        yield {
            "user_id": np.char.add("u", user.astype(str)),
            "task": np.where(search, "src", "rec"),
            "target": np.char.add("i", item.astype(str)),
            # A query names what items have in common.
            "query": np.where(search, np.char.add("thing of kind ", (item % 5000).astype(str)), ""),
            "timestamp": START + first + np.arange(count),
        }


def write_log(folder: Path, rows: int, files: int, kind: str, seed: int) -> None:
    """The log as `files` files of a kind, and the catalogue."""
    import pyarrow as pa
    from pyarrow import csv, parquet

    folder.mkdir(parents=True)
    bounds = [rows * number // files for number in range(files + 1)]
    written, number, writer = 0, 0, None
    for block in blocks(rows, seed):
        table = pa.table(block)
        while len(table):
            if writer is None:
                path = folder / "interactions" / f"part-{number:05d}.{kind}"
                path.parent.mkdir(exist_ok=True)
                make = csv.CSVWriter if kind == "csv" else parquet.ParquetWriter
                writer = make(path, table.schema)
            part = table.slice(0, bounds[number + 1] - written)
            writer.write_table(part)
            written, table = written + len(part), table.slice(len(part))
            if written == bounds[number + 1]:
                writer.close()
                writer, number = None, number + 1
    items = max(100, int(rows**0.7))
    with (folder / "items.csv").open("w", encoding="utf-8") as file:
        file.write("item_id,title\n")
        file.writelines(f"i{item},thing number {item} of kind {item % 5000}\n" for item in range(items))


def prepare_here(log: Path, out: Path, kill_at: float | None) -> None:
    """What a process of its own does: prepares the log and prints what it took."""
    from gems_jax.data.prepare import prepare

    start, stages = time.perf_counter(), []

    def progress(line: str) -> None:
        elapsed = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        stages.append({"seconds": round(elapsed, 1), "mib": round(peak), "line": line})
        print(f"{elapsed:7.1f} s {peak:6.0f} MiB  {line}", file=sys.stderr, flush=True)

    prepare(
        "table",
        out,
        path=log,
        files={"interactions": "interactions"},
        # The generated users take some items again.
        steps={"repeats": True, "cold_items": True},
        max_bad_fraction=0.2,
        progress=progress,
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": time.perf_counter() - start, "peak_mib": peak, "stages": stages}))


if __name__ == "__main__":
    if sys.argv[1]=="x":
        write_log(Path(sys.argv[2]), int(sys.argv[3]), 4, "parquet", 0)
    else:
        prepare_here(Path(sys.argv[2]), Path(sys.argv[3]), None)
