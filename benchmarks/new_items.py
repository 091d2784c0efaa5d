"""Ranking of items that training never saw: identifiers that are added after it, and tokens that waited for it.

    OPENBLAS_NUM_THREADS=1 python benchmarks/new_items.py --data marketplace --users 1600 --share 0.1 \\
        --codebook_size 32 --steps 400 --pretrain_steps 400 --vocabulary 2000 --text FILE --heldout FILE \\
        --out benchmarks/results/new_items.json

A share of the catalogue (``--share``) is new: no training row has such an item as its target, none has it in its
history, and the text that the base model is pretrained on, which is ``--text`` and titles, has those of other items
only. A small T5 is pretrained and tuned for ``--steps`` steps by joint AdamW. Then test rows are ranked, among the
whole catalogue and among 99 other items drawn at random: rows whose target is a new item, and as many rows of others,
which the model was tuned with. With ``--identifiers rkmeans`` items have identifiers of residual k-means; the new ones
are not in the catalogue of training and come by `gems_jax.training.edit_items.add_items`, the code of ``gems-jax items
add``. With ``tokens`` each item has a token of its own, which can only be where the new ones were known when training
began: their rows start at their titles' and are nobody's target. Popularity and BM25 (stems, of title and text) rank
the same rows; BM25 knows the titles of new items. Intervals are of 95 %, by bootstrap over users. Each command adds
its run to the file; one of the same settings is replaced.
"""

import argparse
import dataclasses
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from result_file import circumstances, write

from gems_jax.config.base_model import ModelConfig, PretrainConfig
from gems_jax.config.data import DataConfig, TextConfig
from gems_jax.config.evaluate import EvaluateConfig
from gems_jax.config.items import ItemsConfig
from gems_jax.config.run import Config
from gems_jax.config.train import TrainConfig
from gems_jax.data.dataset import storage
from gems_jax.data.dataset.tables import Dataset, Item, Row, Table
from gems_jax.evaluation.evaluate import rank_table
from gems_jax.evaluation.non_neural import bm25, item_counts, same_for_all, titles
from gems_jax.evaluation.ranking_summary import evaluate_scorer, summarise
from gems_jax.training.edit_items import add_items
from gems_jax.training.run_assets import run_assets
from gems_jax.training.stages import ensure_data
from gems_jax.training.tune import tune
from gems_jax.training.tuned import TunedRun, load_run

KEPT = ("hit@10", "hit@10_ci", "ndcg@10", "ndcg@10_ci", "rows", "users", "candidates")


def without(dataset: Dataset, held: frozenset[int], listed: bool) -> Dataset:
    """A dataset in which no row has one of some items as its target or in its history.

    Args:
      dataset: the whole one.
      held: numbers of these items.
      listed: whether they stay in the catalogue.
    """
    kept = [number for number in range(len(dataset.items)) if number not in held]
    number = {old: old if listed else new for new, old in enumerate(kept)}

    def rows(table: Table) -> list[Row]:
        return [
            Row(
                table.user_ids[row],
                [number[item] for item in table.history_of(row).tolist() if item in number],
                number[int(table.target[row])],
                table.queries[row],
            )
            for row in range(len(table))
            if int(table.target[row]) in number
        ]

    tables = {key: Table.from_rows(key[1], rows(table)) for key, table in dataset.tables.items()}
    items = dataset.items if listed else [dataset.items[old] for old in kept]
    return dataclasses.replace(dataset, items=items, tables=tables)


def measured_rows(
    dataset: Dataset, known: Dataset, task: str, held: frozenset[int], new: bool, rows: int, rng: np.random.Generator
) -> Table:
    """Test rows whose target is a new item, or is none, in the numbers of the catalogue that they are ranked in."""
    table = dataset.table("test", task)
    places = {item.item_id: number for number, item in enumerate(known.items)}
    renumbered = np.array([places[item.item_id] for item in dataset.items], np.int32)
    chosen = np.flatnonzero(np.isin(table.target, sorted(held)) == new)
    table = table.take(np.sort(rng.permutation(chosen)[:rows]))
    return dataclasses.replace(
        table, history=renumbered[table.history], target=renumbered[table.target], negatives=None
    )


def with_negatives(table: Table, items: int, count: int, rng: np.random.Generator) -> Table:
    """Each row with other items to rank its target against, none of its history."""
    drawn = []
    for row in range(len(table)):
        left = np.setdiff1d(np.arange(items), [*table.history_of(row).tolist(), int(table.target[row])])
        drawn.append(rng.choice(left, size=min(count, len(left)), replace=False))
    return dataclasses.replace(table, negatives=np.array(drawn, np.int32))


def measure(config: Config, run: TunedRun, table: Table, training: list[Table]) -> dict[str, Any]:
    """Metrics of the model and of the rankers without one, for the rows of a table."""
    items = run.assets.dataset.items
    ids, _ = rank_table(
        run.model,
        run.assets.items,
        table,
        run.assets.encode(config, table),
        beams=config.evaluate.beams,
        vocabulary=config.train.loss_vocabulary,
        batch_size=config.evaluate.batch_size,
        progress=True,
    )
    candidates = len(items) if table.negatives is None else None
    found = {"model": summarise(table, ids, candidates=candidates)}
    found["popularity"] = evaluate_scorer(table, same_for_all(item_counts(training, len(items))), len(items))
    if any(table.queries):
        found["BM25, stemmed"] = evaluate_scorer(table, bm25(titles(items), table, stem=True), len(items))
    return {name: {key: entry[key] for key in KEPT if key in entry} for name, entry in found.items()}


def config_of(options: argparse.Namespace, root: Path, text: str) -> Config:
    """The run's configuration; whatever is made lies under ``root``."""
    width, steps = options.width, options.steps
    codes: dict[str, Any] = {}
    if options.identifiers == "rkmeans":
        codes = {"identifiers": "rkmeans", "levels": 3, "codebook_size": options.codebook_size}
    return Config(
        name="new items",
        data=DataConfig(
            name=options.data, path=options.path, dir=str(root / "data"), num_negatives=0, num_users=options.users
        ),
        text=TextConfig(train=text, heldout=options.heldout, input_length=64),
        model=ModelConfig(path=str(root / "base")),
        pretrain=PretrainConfig(
            vocab_size=options.vocabulary,
            d_model=width,
            d_kv=width // 4,
            d_ff=2 * width,
            num_layers=2,
            num_decoder_layers=1,
            num_heads=4,
            steps=options.pretrain_steps,
            batch_size=32,
            warmup=max(1, options.pretrain_steps // 10),
        ),
        items=ItemsConfig(path=str(root / "identifiers"), max_length=options.max_length, **codes),
        train=TrainConfig(
            method="adamw",
            steps=steps,
            batch_size=options.batch_size,
            learning_rate=3e-3,
            item_learning_rate=1e-2,
            warmup=max(1, steps // 10),
            log_every=max(1, steps // 20),
            checkpoint_every=0,
        ),
        evaluate=EvaluateConfig(batch_size=64),
    )


def text_of(items: Sequence[Item], general: str, folder: Path) -> str:
    """A pattern of general text and the titles of items."""
    folder.mkdir(parents=True)
    (folder / "titles.txt").write_text("".join(f"{item.search_text}\n" for item in items), encoding="utf-8")
    (folder / "general.txt").write_bytes(Path(general).read_bytes())
    return str(folder / "*.txt")


def measured(options: argparse.Namespace, root: Path) -> dict[str, Any]:
    """The whole path: data, base, identifiers, tuning, the new items, rankings."""
    rng = np.random.default_rng(options.seed)
    config = config_of(options, root, options.text)
    whole = dataclasses.replace(config, data=dataclasses.replace(config.data, dir=str(root / "whole")))
    dataset = ensure_data(whole)
    held = frozenset(rng.permutation(len(dataset.items))[: round(options.share * len(dataset.items))].tolist())
    with_tokens = options.identifiers == "tokens"
    storage.save(without(dataset, held, listed=with_tokens), config.data.dir)
    old = [item for number, item in enumerate(dataset.items) if number not in held]
    config = config_of(options, root, text_of(old, options.text, root / "text"))
    workdir, begin = root / "run", time.process_time()
    _, assets, _ = run_assets(config, workdir)
    made = time.process_time()
    tune(config, assets, None, workdir)
    tuned = time.process_time()
    moved = 0
    if not with_tokens:
        new = [dataset.items[number] for number in sorted(held)]
        (root / "new.jsonl").write_text("".join(json.dumps(vars(item)) + "\n" for item in new), encoding="utf-8")
        moved = add_items(config, workdir, str(root / "new.jsonl")).moved
    run = load_run(config, workdir)
    training = [run.assets.dataset.tables["train", task] for task in run.assets.dataset.tasks]
    results: dict[str, Any] = {}
    for task in run.assets.dataset.tasks:
        for what, is_new in (("new", True), ("known", False)):
            table = measured_rows(dataset, run.assets.dataset, task, held, is_new, options.rows, rng)
            some = with_negatives(table, len(dataset.items), 99, rng)
            results.setdefault(task, {})[what] = {
                "targets": len(np.unique(table.target)),
                "whole catalogue": measure(config, run, table, training),
                "99 others": measure(config, run, some, training),
            }
    return {
        "catalogue": {"items": len(dataset.items), "held_out": len(held), "moved": moved},
        "training_rows": {task: len(run.assets.dataset.table("train", task)) for task in run.assets.dataset.tasks},
        "words_of_text": len(Path(options.text).read_text(encoding="utf-8").split()),
        "cpu_seconds": {
            "base and identifiers": round(made - begin),
            "tuning": round(tuned - made),
            "adding and ranking": round(time.process_time() - tuned),
        },
        "results": results,
    }


def lines_of(result: dict[str, Any]) -> list[str]:
    """A line for each ranker, task and kind of row."""
    return [
        f"{task} {what:5s} {among:15s} {name:13s} hit@10 {entry['hit@10']:.3f} [{entry['hit@10_ci'][0]:.3f}, "
        f"{entry['hit@10_ci'][1]:.3f}]  ndcg@10 {entry['ndcg@10']:.3f}  {entry['rows']} rows"
        for task, kinds in result["results"].items()
        for what, ways in kinds.items()
        for among, rankers in ways.items()
        if among != "targets"
        for name, entry in rankers.items()
    ]


def parsed(argv: list[str] | None = None) -> argparse.Namespace:
    """The command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="amazon_scientific", help="name of the source (data.name)")
    parser.add_argument("--path", default=None, help="its folder (data.path)")
    parser.add_argument("--text", required=True, help="file of general text to pretrain on")
    parser.add_argument("--heldout", required=True, help="file of other general text")
    parser.add_argument("--share", type=float, default=0.05, help="of the catalogue that is held out")
    parser.add_argument("--identifiers", choices=("rkmeans", "tokens"), default="rkmeans")
    parser.add_argument("--users", type=int, default=800, help="of the made-up shop")
    parser.add_argument("--rows", type=int, default=400, help="test rows of each task and kind, at most")
    parser.add_argument("--seed", type=int, default=0, help="of what is held out, and of the rows")
    for name, value in (
        ("width", 64),
        ("vocabulary", 4000),
        ("pretrain_steps", 600),
        ("steps", 400),
        ("batch_size", 32),
        ("codebook_size", 64),
        ("max_length", 80),
    ):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--out", type=Path, default=None)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    options = parsed(argv)
    with tempfile.TemporaryDirectory() as folder:
        result = measured(options, Path(folder))
    print("\n".join(lines_of(result)))
    settings = {name: value for name, value in vars(options).items() if name not in ("path", "text", "heldout", "out")}
    run = circumstances("jax", "jaxlib", "flax", "numpy", "bm25s", device="CPU") | {"settings": settings} | result
    if options.out is not None:
        there = json.loads(options.out.read_text())["runs"] if options.out.exists() else []
        write({"runs": [*(one for one in there if one["settings"] != settings), run]}, options.out)


if __name__ == "__main__":
    main()
