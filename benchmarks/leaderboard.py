"""Rankers that need no tuned language model, on Amazon "Industrial & Scientific": what docs/leaderboard.md shows.

    OPENBLAS_NUM_THREADS=1 python benchmarks/leaderboard.py --data data/amazon_scientific \\
        --parts popularity cooccurrence bm25 --out benchmarks/results/leaderboard.json
    OPENBLAS_NUM_THREADS=1 python benchmarks/leaderboard.py --data data/amazon_scientific \\
        --parts sasrec --seeds 0 1 --out benchmarks/results/leaderboard.json
    OPENBLAS_NUM_THREADS=1 python benchmarks/leaderboard.py --data data/amazon_scientific \\
        --parts tiger --tfidf --tiger width=64 layers=2 epochs=20 --out benchmarks/results/leaderboard.json
    OPENBLAS_NUM_THREADS=1 python benchmarks/leaderboard.py --data data/amazon_scientific \\
        --parts two-tower two-tower-trained tiger --model PATH --model-name NAME \\
        --out benchmarks/results/leaderboard.json
    python docs/leaderboard.py

The folder holds Scientific.inter.json, Scientific.item.json and queries.tsv (docs/data.md). All test rows are ranked
once among 1 + 99 sampled items and once among the whole catalogue, with 95 % intervals by bootstrap over users. Each
command adds its rows to the file, each with its circumstances; a row that is there already is replaced. Texts of items,
of which two towers and TIGER's identifiers are made, are read by a model, or as TF-IDF of their words in fewer
dimensions (``--tfidf``: scikit-learn's, 128 of them); ``--tiger`` changes fields of `evaluate.tiger`.
"""

import argparse
import dataclasses
import functools
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from result_file import circumstances, write

from gems_jax.config.run import Config
from gems_jax.data.dataset.tables import Dataset
from gems_jax.data.sources import amazon_scientific
from gems_jax.evaluation.baselines import baselines
from gems_jax.evaluation.candidate_sets import candidate_sets
from gems_jax.evaluation.simple_rankers import simple_rankers

TRAINED = ("sasrec", "tiger", "two-tower-trained")
READING = ("tiger", "two-tower", "two-tower-trained")
DIMENSIONS = 128


def tfidf(texts: Sequence[str]) -> np.ndarray:
    """TF-IDF of words and pairs of words (logarithms of counts, no word of one text), in `DIMENSIONS` by SVD."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), min_df=2, stop_words="english")
    return np.asarray(TruncatedSVD(DIMENSIONS, random_state=0).fit_transform(words.fit_transform(texts)), np.float32)


def reader(model: Path | None, by_words: bool) -> Callable[[Sequence[str]], np.ndarray] | None:
    """What texts become vectors by, each list of them once."""
    if model is None and not by_words:
        return None
    read = tfidf
    if model is not None:
        from gems_jax.identifiers.text_embeddings import text_embeddings
        from gems_jax.models import load

        read = functools.partial(text_embeddings, *load(model), progress=True)
    known = functools.cache(read)
    return lambda texts: known(tuple(texts))


def measure(dataset: Dataset, options: Any, read: Any) -> dict[str, Any]:
    """Ranker to ``"sampled"`` and ``"all"`` to the metrics of each task, and the seconds that both took."""
    sets = candidate_sets({task: dataset.table("test", task) for task in dataset.tasks}, "both", len(dataset.items))
    found = {}
    for name, ranker in baselines(options, dataset, read).items():
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
    parser.add_argument("--model", type=Path, help="Hugging Face folder that two towers and TIGER read texts with")
    parser.add_argument("--tfidf", action="store_true", help="TIGER reads texts as TF-IDF, see above")
    parser.add_argument("--tiger", nargs="*", default=[], metavar="FIELD=VALUE", help="of evaluate.tiger")
    parser.add_argument("--model-name", help="what the page calls that model")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    dataset = amazon_scientific.load(arguments.data)
    if arguments.tfidf and (arguments.model is not None or any("two-tower" in part for part in arguments.parts)):
        parser.error("--tfidf is for TIGER without --model: two towers need a model that reads queries, too")
    read = reader(arguments.model, arguments.tfidf)
    packages = ("jax", "flax", "numpy", "bm25s", *(("scikit-learn",) if arguments.tfidf else ()))
    about = circumstances(*packages) | {"command": f"python benchmarks/leaderboard.py {_words()}"}
    options = dataclasses.replace(Config().evaluate, baselines=tuple(arguments.parts))
    changed = {name: json.loads(value) for name, value in (word.split("=") for word in arguments.tiger)}
    tiger = dataclasses.replace(options.tiger, **changed)
    for seed in arguments.seeds:
        sasrec = dataclasses.replace(options.sasrec, seed=seed)
        towers = dataclasses.replace(options.two_tower, seed=seed)
        tiger = dataclasses.replace(tiger, seed=seed)
        rows = measure(dataset, dataclasses.replace(options, sasrec=sasrec, tiger=tiger, two_tower=towers), read)
        result = json.loads(arguments.out.read_text()) if arguments.out.exists() else {"rows": []}
        for name, row in rows.items():
            key = {"name": name, "seed": seed if row["group"] in TRAINED else None}
            if row["group"] in READING:
                key["model"] = f"TF-IDF in {DIMENSIONS} dimensions" if arguments.tfidf else arguments.model_name
            if row["group"] == "tiger":
                key["shape"] = f"{tiger.layers} + {tiger.layers} layers of width {tiger.width}"
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
