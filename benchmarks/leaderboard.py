"""Rankers that need no tuned language model, on Amazon "Industrial & Scientific": what docs/leaderboard.md shows.

    OPENBLAS_NUM_THREADS=1 python benchmarks/leaderboard.py --data ../shared/data/amazon_scientific \\
        --parts popularity cooccurrence bm25 --out benchmarks/results/leaderboard.json
    OPENBLAS_NUM_THREADS=1 python benchmarks/leaderboard.py --data ../shared/data/amazon_scientific \\
        --parts sasrec --seeds 0 1 --out benchmarks/results/leaderboard.json
    OPENBLAS_NUM_THREADS=1 python benchmarks/leaderboard.py --data ../shared/data/amazon_scientific \\
        --parts two-tower two-tower-trained --model PATH --out benchmarks/results/leaderboard.json
    python docs/leaderboard.py

The folder holds Scientific.inter.json, Scientific.item.json and queries.tsv (docs/data.md). All test rows are ranked
once among 1 + 99 sampled items and once among the whole catalogue, with 95 % intervals by bootstrap over users. Each
command adds its rows to the file, each with its circumstances; a row that is there already is replaced.
"""

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

from result_file import circumstances, write

from gems_jax.config.run import Config
from gems_jax.data.dataset.tables import Dataset
from gems_jax.data.sources import amazon_scientific
from gems_jax.evaluation.baselines import baselines
from gems_jax.evaluation.candidate_sets import candidate_sets
from gems_jax.evaluation.simple_rankers import simple_rankers

TRAINED = ("sasrec", "two-tower-trained")


def measure(dataset: Dataset, options: Any, model: Any, tokenizer: Any) -> dict[str, Any]:
    """Ranker to ``"sampled"`` and ``"all"`` to the metrics of each task, and the seconds that both took."""
    sets = candidate_sets({task: dataset.table("test", task) for task in dataset.tasks}, "both", len(dataset.items))
    found = {}
    for name, ranker in baselines(options, dataset, model, tokenizer).items():
        start, cpu = time.perf_counter(), time.process_time()
        row: dict[str, Any] = {"group": ranker.group}
        for kind, tables in (("sampled", sets.main), ("all", sets.whole)):
            row[kind] = simple_rankers(dataset, tables, options.samples, {name: ranker})[name]
        row |= {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
        print(f"{name}: {row['cpu_seconds']:.0f} CPU seconds", flush=True)
        found[name] = row
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the raw files")
    parser.add_argument("--parts", nargs="+", required=True, help="names of evaluate.baselines")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of what is trained")
    parser.add_argument("--model", type=Path, help="Hugging Face folder that two towers read texts with")
    parser.add_argument("--model-name", help="what the page calls that model")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    dataset = amazon_scientific.load(arguments.data)
    model = tokenizer = None
    if arguments.model is not None:
        from gems_jax.models import load

        model, tokenizer = load(arguments.model)
    about = circumstances("jax", "flax", "numpy", "bm25s") | {"command": f"python benchmarks/leaderboard.py {_words()}"}
    options = dataclasses.replace(Config().evaluate, baselines=tuple(arguments.parts))
    for seed in arguments.seeds:
        sasrec = dataclasses.replace(options.sasrec, seed=seed)
        towers = dataclasses.replace(options.two_tower, seed=seed)
        rows = measure(dataset, dataclasses.replace(options, sasrec=sasrec, two_tower=towers), model, tokenizer)
        result = json.loads(arguments.out.read_text()) if arguments.out.exists() else {"rows": []}
        for name, row in rows.items():
            key = {"name": name, "seed": seed if row["group"] in TRAINED else None}
            if row["group"].startswith("two-tower"):
                key["model"] = arguments.model_name
            others = [old for old in result["rows"] if any(old.get(k) != value for k, value in key.items())]
            result["rows"] = [*others, key | row | {"circumstances": about}]
        result["dataset"] = {"items": len(dataset.items), "rows": dataset.row_counts()}
        write(result, arguments.out)


def _words() -> str:
    """The arguments, without folders of this machine."""
    words = sys.argv[1:]
    hidden = {index + 1 for index, word in enumerate(words) if word in ("--data", "--model")}
    return " ".join("PATH" if index in hidden else word for index, word in enumerate(words))


if __name__ == "__main__":
    main()
