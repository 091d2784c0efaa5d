"""Examples a second that one core turns into training batches, measured on this machine.

    OPENBLAS_NUM_THREADS=1 python benchmarks/pipeline.py --out benchmarks/results/pipeline.json

The six tables of Amazon Industrial & Scientific (`--path`, the folder of its raw files) are prepared, both training
tables encoded once into memory-mapped files, and batches of both tasks read from them: by the source alone, in the
process's one thread; through grain without and with a thread that makes batches ahead; and with length groups and
buckets. All of it runs on one core, which the process is bound to. Each figure is the best and the median of several
rounds; an example is a real row of one task. `real_tokens` is the share of the batches' columns that hold a token.
Beside them what encoding costs the first time, and what opening the files costs from then on.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from result_file import circumstances, write

from gems_jax.data.batching.encoded_table import EncodedTable
from gems_jax.data.batching.pipeline import Batch, TaskBatchSource, task_batches
from gems_jax.data.batching.token_cache import encode_once
from gems_jax.data.dataset.tables import Dataset
from gems_jax.data.prepare import prepare
from gems_jax.data.text.small_tokenizer import train_tokenizer
from gems_jax.items.tokens import add_item_tokens

PROMPTS = {"rec": "history: {history} next:", "src": "search: {query} history: {history} found:"}
MAX_LENGTH = 64
BUCKETS = (24, 32, 40, 48)
WINDOW = 64


def encode(dataset: Dataset, folder: Path) -> tuple[dict[str, EncodedTable], dict[str, float]]:
    """Both training tables from files, and what making and opening these took."""
    queries = {query for task in dataset.tasks for query in dataset.table("train", task).queries}
    tokenizer = train_tokenizer(dataset.titles() + sorted(queries), 4096)
    tokens = add_item_tokens(tokenizer, dataset.item_ids())
    seconds = {}
    for name in ("encode_first_time", "encode_again"):
        start = time.perf_counter()
        encoded = {
            task: encode_once(dataset.table("train", task), tokenizer, tokens, PROMPTS[task], MAX_LENGTH, folder)
            for task in dataset.tasks
        }
        seconds[name] = time.perf_counter() - start
    return encoded, seconds


def rates(make: Callable[[], Callable[[], Batch]], batches: int, rounds: int) -> dict[str, Any]:
    """Real rows a second of each round, and the share of real tokens."""
    per_second, real, columns = [], 0, 0
    for _ in range(rounds):
        following = make()
        following()
        start, rows = time.perf_counter(), 0
        kept = []
        for _ in range(batches):
            batch = following()
            rows += batch["row_index"].size
            kept.append(batch)
        elapsed = time.perf_counter() - start
        missing = sum(int((batch["row_index"] < 0).sum()) for batch in kept)
        per_second.append((rows - missing) / elapsed)
        real += sum(int(batch["attention_mask"].sum()) for batch in kept)
        columns += sum(batch["input_ids"].size for batch in kept)
    return {
        "examples_per_second": round(max(per_second)),
        "examples_per_second_median": round(statistics.median(per_second)),
        "real_tokens": round(real / columns, 3),
    }


def measure(encoded: dict[str, EncodedTable], batch_size: int, batches: int, rounds: int) -> dict[str, Any]:
    """All ways of making batches of one size."""

    def source(**options: Any) -> Callable[[], Batch]:
        made = TaskBatchSource(encoded, batch_size, MAX_LENGTH, 0, **options)
        steps = iter(range(2**40))
        return lambda: made[next(steps)]

    def grain(**options: Any) -> Callable[[], Batch]:
        made = task_batches(encoded, batch_size, MAX_LENGTH, 0, **options)
        return lambda: next(made)

    grouped = {"length_buckets": BUCKETS, "length_window": WINDOW}
    ways: dict[str, Callable[[], Callable[[], Batch]]] = {
        "source": lambda: source(),
        "source, sampling by ratio": lambda: source(sampling="ratio"),
        "source, buckets": lambda: source(length_buckets=BUCKETS),
        f"source, buckets, groups of {WINDOW} steps": lambda: source(**grouped),
        "grain": lambda: grain(prefetch=0),
        "grain, a thread ahead": lambda: grain(),
        f"grain, a thread ahead, buckets, groups of {WINDOW} steps": lambda: grain(**grouped),
    }
    return {name: rates(way, batches, rounds) for name, way in ways.items()}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", default="data/amazon_scientific", help="folder of the raw files")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[32, 128, 512])
    parser.add_argument("--examples", type=int, default=65_536, help="of each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as folder:
        dataset = prepare("amazon_scientific", Path(folder) / "data", path=args.path, progress=None)
        encoded, seconds = encode(dataset, Path(folder) / "tokens")
        results = {}
        for batch_size in args.batch_sizes:
            batches = max(1, args.examples // (len(encoded) * batch_size))
            results[str(batch_size)] = measure(encoded, batch_size, batches, args.rounds)
            for name, result in results[str(batch_size)].items():
                print(
                    f"batch {batch_size:4}  {result['examples_per_second']:>9,}/s  {result['real_tokens']:.2f}  {name}"
                )
    print("; ".join(f"{name} {value:.2f} s" for name, value in seconds.items()))
    record = {
        **circumstances("numpy", "grain"),
        "cores_used": 1,
        "command": " ".join(sys.argv),
        "rows": {task: len(table) for task, table in encoded.items()},
        "tokens_an_input": {task: round(float(np.mean(table.lengths())), 1) for task, table in encoded.items()},
        "max_length": MAX_LENGTH,
        "length_buckets": BUCKETS,
        "length_window": WINDOW,
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "by_batch_size": results,
    }
    write(record, args.out)
    return record


if __name__ == "__main__":
    main()
