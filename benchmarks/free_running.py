"""Runs on whole and on projected gradients side by side: whether where they end differs more than seeds do.

    OPENBLAS_NUM_THREADS=1 python benchmarks/free_running.py --workdir runs/free_running --seeds 3 \\
        --config configs/demo.yaml --train.steps 500 --out benchmarks/results/free_running.json

All fields of a configuration may be given; ``gems.decomposition`` is ``subspace`` for both, as projected gradients need
it. Each seed is one run on ``train.gradients: full`` and one on ``projected``, from the same base, rows and order;
float32 rounds both differently, so they part. Measured are hit@10 and ndcg@10 of both tasks (``evaluate.rows``
test rows) and forgetting, the rise of the loss on held-out general text: mean and standard deviation over seeds, and of
the difference, projected less whole, seed by seed.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

import jax
from result_file import circumstances, spread_of, write

from gems_jax.arguments import parse_config
from gems_jax.config.run import Config
from gems_jax.evaluation.drift import general_drift
from gems_jax.evaluation.evaluate import evaluate_ranking
from gems_jax.training.evaluate_run import evaluation_tables
from gems_jax.training.pretrain import heldout_text
from gems_jax.training.run_assets import run_assets
from gems_jax.training.tune import tune

PATHS = ("full", "projected")


def measured(config: Config, workdir: Path) -> dict[str, float]:
    """Trains, or takes a run that was, and measures it."""
    base, assets, null_space = run_assets(config, workdir)
    tuned = tune(config, assets, null_space, workdir)
    tables = evaluation_tables(config, assets.dataset)
    encoded = {task: assets.encode(config, table) for task, table in tables.items()}
    options = {"vocabulary": config.train.loss_vocabulary, "batch_size": config.evaluate.batch_size, "samples": 0}
    ranked = evaluate_ranking(tuned, assets.items, tables, encoded, beams=config.evaluate.beams, **options)
    drift = general_drift(base, tuned, heldout_text(assets.tokenizer, config, base.layout))
    found = {f"{task} {metric}": ranked[task][metric] for task in tables for metric in ("hit@10", "ndcg@10")}
    return found | {"forgetting": drift["forgetting"]}


def of_path(config: Config, gradients: str, seed: int) -> Config:
    train = dataclasses.replace(config.train, gradients=gradients, seed=seed)
    gems = dataclasses.replace(config.gems, decomposition="subspace")
    return dataclasses.replace(config, train=train, gems=gems)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True, help="folder of the runs, which go on where they were")
    parser.add_argument("--seeds", type=int, default=3, help="at least 2")
    parser.add_argument("--out", type=Path)
    args, fields = parser.parse_known_args()
    config = parse_config(fields)
    found: dict[str, list[dict[str, float]]] = {path: [] for path in PATHS}
    for seed in range(args.seeds):
        for path in PATHS:
            one = measured(of_path(config, path, seed), args.workdir / f"{path}_{seed}")
            found[path].append(one)
            print(path, seed, one, flush=True)
    rows = {}
    for name in found["full"][0]:
        full, projected = (spread_of([one[name] for one in found[path]]) for path in PATHS)
        pairs = zip(full["by_seed"], projected["by_seed"], strict=True)
        rows[name] = {"full": full, "projected": projected, "difference": spread_of([b - a for a, b in pairs])}
        print(f"{name:14}", *(f"{of} {one['mean']:.4f} +- {one['std']:.4f}" for of, one in rows[name].items()))
    command = " ".join(["python benchmarks/free_running.py --seeds", str(args.seeds), *fields])
    where = circumstances("jax", "jaxlib", "flax", "optax", device=jax.devices()[0].device_kind)
    write({"command": command, "steps": config.train.steps, "circumstances": where, "rows": rows}, args.out)


if __name__ == "__main__":
    sys.exit(main())
