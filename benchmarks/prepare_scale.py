"""Preparing generated interactions by the million: time of each stage, memory, and what a restart costs.

    OPENBLAS_NUM_THREADS=1 python benchmarks/prepare_scale.py --rows 1000000 10000000 --kill 0.5 \\
        --out benchmarks/results/prepare_scale.json

For each number of rows a log is written first (seeded, in blocks, so that it may be larger than memory): users and
items by a power law, in the table format, one file or several. Then `prepare` reads it in a process of its own, whose
largest resident memory is what is reported; the log's making does not count. With `--kill 0.5` another process
prepares it anew, is killed when it has done this share of the rows, and started again: the time of the second start is
what a restart costs, and its tables must be the same.
"""

import argparse
import hashlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from result_file import circumstances, write

START = 1_600_000_000
BLOCK = 500_000


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
    """Runs in a process of its own: prepares the log and prints what it took, or kills itself on the way."""
    from gems_jax.data.prepare import prepare

    start, stages = time.perf_counter(), []

    def progress(line: str) -> None:
        elapsed, peak = time.perf_counter() - start, peak_mib()
        stages.append({"seconds": round(elapsed, 1), "peak_mib": round(peak), "line": line.replace(str(out), "OUT")})
        print(f"{elapsed:7.1f} s {peak:6.0f} MiB  {line}", file=sys.stderr, flush=True)
        counts = re.search(r"([\d,]+) of ([\d,]+) rows done", line)
        if counts and kill_at is not None:
            done, total = (int(number.replace(",", "")) for number in counts.groups())
            if done >= kill_at * total:
                os.kill(os.getpid(), signal.SIGKILL)

    # The generated users take some items again.
    dataset = prepare(
        "table",
        out,
        path=log,
        files={"interactions": "interactions"},
        preprocessing={"repeats": True},
        progress=progress,
    )
    record = {"seconds": round(time.perf_counter() - start, 1), "peak_mib": round(peak_mib()), "stages": stages}
    print(json.dumps(record | {"rows": dataset.card["rows"], "tables": digest(dataset)}))


def peak_mib() -> float:
    """Largest resident memory of this process so far."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        # What getrusage says begins, in a process of its own, with the memory of the one that started it.
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def digest(dataset: Any) -> str:
    """SHA-256 of the content of the tables."""
    sha = hashlib.sha256()
    for key, table in dataset.tables.items():
        sha.update(repr((key, len(table))).encode())
        for array in (table.history, table.offsets, table.target, table.negatives, table.time):
            if array is not None:
                sha.update(np.ascontiguousarray(array).data)
        for texts in (table.user_ids, table.queries):
            for start in range(0, len(texts), BLOCK):
                sha.update("\0".join(texts[start : start + BLOCK]).encode())
    return sha.hexdigest()


def in_process(log: Path, out: Path, kill_at: float | None = None) -> dict[str, Any] | None:
    """`prepare_here` in a new process; None where it was killed."""
    command = [sys.executable, __file__, "--prepare-here", str(log), str(out)]
    command += [] if kill_at is None else ["--kill", str(kill_at)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode == -signal.SIGKILL and kill_at is not None:
        return None
    if done.returncode:
        raise SystemExit(f"prepare ended with {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(rows: int, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One number of rows: the log, its preparation, and a restart after a kill."""
    log = folder / f"log{rows}"
    start = time.perf_counter()
    write_log(log, rows, args.files, args.kind, args.seed)
    result: dict[str, Any] = {"log_seconds": round(time.perf_counter() - start, 1)}
    result["log_mib"] = round(sum(path.stat().st_size for path in log.rglob("*") if path.is_file()) / 2**20)
    whole = in_process(log, folder / "whole")
    assert whole is not None
    prepared = [path for path in (folder / "whole").rglob("*") if path.is_file()]
    result["prepared_mib"] = round(sum(path.stat().st_size for path in prepared) / 2**20)
    result |= {name: whole[name] for name in ("seconds", "peak_mib", "rows", "stages")}
    result["rows_per_second"] = round(rows / whole["seconds"])
    shutil.rmtree(folder / "whole")
    if args.kill:
        killed = in_process(log, folder / "again", args.kill)
        again = in_process(log, folder / "again")
        assert again is not None
        if again["tables"] != whole["tables"]:
            raise SystemExit("the dataset after a restart is another one")
        result["restart"] = {
            "killed_after_share": args.kill if killed is None else None,
            "seconds": again["seconds"],
            "peak_mib": again["peak_mib"],
            "same_tables": True,
        }
        shutil.rmtree(folder / "again")
    shutil.rmtree(log)
    return result


def main(argv: list[str] | None = None) -> dict[str, Any] | None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000])
    parser.add_argument("--files", type=int, default=16, help="that the log is spread over")
    parser.add_argument("--kind", choices=("parquet", "csv"), default="parquet")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kill", type=float, help="share of the rows done when another process is killed; 0: none")
    parser.add_argument("--folder", type=Path, help="for the log and the datasets; by default a temporary one")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--prepare-here", type=Path, nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.prepare_here:
        log, out = args.prepare_here
        prepare_here(log, out, args.kill)
        return None
    record: dict[str, Any] = {
        **circumstances("numpy", "pyarrow", "tensorflow-datasets"),
        "command": " ".join(sys.argv),
        "files": args.files,
        "kind": args.kind,
        "by_rows": {},
    }
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        for rows in args.rows:
            result = record["by_rows"][str(rows)] = measure(rows, args, Path(folder))
            print(f"{rows:>12,} rows  {result['seconds']:>8.1f} s  {result['peak_mib']:>6} MiB", flush=True)
    write(record, args.out)
    return record


if __name__ == "__main__":
    main()
