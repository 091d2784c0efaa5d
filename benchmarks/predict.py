"""A file of requests answered by ``gems-jax predict``, beside the same rankings without it.

    OPENBLAS_NUM_THREADS=1 python benchmarks/predict.py --workdir runs/demo/gems \\
        --out benchmarks/results/predict.json

The requests are searches and recommendations of the run's test users in turn. Timed are `predict`, from the file of
requests to that of answers, and `rank_items` of the very same prompts in batches of the same rows and lengths, made
before. Both take turns; of each turn the CPU seconds of this process are counted, which other work on the machine does
not lengthen as it does the time on the clock. What is written is the ratio of each turn, and both times. Loading the
model and compiling are no part of either. Without ``--workdir`` the model is that of ``benchmarks/serve.py``, of
random weights, ``--layers`` times two layers of ``--width``: what predict adds to a request is the same for any model,
and the less, the more often users and queries come again: how many there are is written, too.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from result_file import circumstances, write
from serve import engine_of, made, of_run, requests_of

from gems_jax.config.run import Config
from gems_jax.ranking.rank_items import rank_items
from gems_jax.serving.catalogue import Ranking
from gems_jax.serving.predict import PART, predict
from gems_jax.serving.prompts import PromptMaker, padded
from gems_jax.serving.requests import Request
from gems_jax.serving.shapes import Shapes
from gems_jax.training.stages import Assets


def batches(config: Config, assets: Assets, rankings: list[Ranking]) -> Iterator[dict[str, np.ndarray]]:
    """The inputs of the batches that `predict` makes of requests."""
    maker = PromptMaker(assets.tokenizer, assets.dataset, assets.items, config.items.max_length, assets.model.layout)
    shapes = Shapes(config.evaluate.batch_size, config.items.max_length, config.evaluate.beams, 0)
    templates = assets.templates(config)
    for first in range(0, len(rankings), PART):
        prompts = [maker.encode(templates[one.task], [one]).tokens_of(0) for one in rankings[first : first + PART]]
        lengths = np.asarray([len(prompt) for prompt in prompts])
        for rows in shapes.batches(lengths, [config.evaluate.beams] * len(prompts)):
            shape = shapes.around(len(rows), int(lengths[rows].max()), 0, config.evaluate.beams)
            chosen = [prompts[row] for row in rows]
            yield padded(chosen, shape.rows, shape.length, assets.model.config.pad_token_id)


def seconds(work: Callable[[], Any]) -> tuple[float, float]:
    """CPU seconds of this process, and those of the clock."""
    begun, clock = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - begun, time.perf_counter() - clock


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, help="of a tuned run")
    parser.add_argument("--width", type=int, default=64, help="of the model that is made where there is no run")
    parser.add_argument("--layers", type=int, default=2, help="of its encoder, and of its decoder")
    parser.add_argument("--requests", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.workdir is None:
        with tempfile.TemporaryDirectory() as folder:
            config, assets = made(Path(folder), args.width, args.layers)
    else:
        config, assets = of_run(args.workdir)
    model, requests = assets.model, requests_of(assets, args.requests)
    catalogue = engine_of(config, assets, config.evaluate.batch_size, config.evaluate.beams).catalogue
    inputs = list(batches(config, assets, [catalogue.look_up(Request.of(one)) for one in requests]))
    beams, options = config.evaluate.beams, {"vocabulary": config.train.loss_vocabulary}

    def rank() -> None:
        found = [rank_items(model, batch, assets.items, k=beams, beams=beams, **options) for batch in inputs]
        for ids, scores in found:
            np.asarray(ids), np.asarray(scores)

    with tempfile.TemporaryDirectory() as folder:
        file, answers = Path(folder, "requests.jsonl"), Path(folder, "answers.jsonl")
        file.write_text("".join(json.dumps(one) + "\n" for one in requests))

        def answered() -> tuple[float, float]:
            """By an engine that knows nothing of the turn before."""
            engine = engine_of(config, assets, config.evaluate.batch_size, config.evaluate.beams)
            answers.unlink(missing_ok=True)
            return seconds(lambda: predict(engine, file, answers))

        answered()
        rank()
        turns = [(answered(), seconds(rank)) for _ in range(args.rounds)]
    ratios = [ours[0] / alone[0] for ours, alone in turns]
    cut = statistics.quantiles(ratios, n=4, method="inclusive")
    print(f"predict takes {cut[1]:.3f} times the CPU of rank_items (quartiles {cut[0]:.3f} to {cut[2]:.3f})")
    cpu = [statistics.median(turn[side][0] for turn in turns) for side in (0, 1)]
    print(f"CPU seconds for {args.requests:,} requests: predict {cpu[0]:.2f}, rank_items {cpu[1]:.2f}")
    clock = statistics.median(ours[1] / alone[1] for ours, alone in turns)
    print(f"by the clock: {clock:.3f} times")
    result = {
        **circumstances("jax", "jaxlib", "tokenizers", device=jax.devices()[0].device_kind),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(model)),
        "items": assets.items.num_items,
        "requests": args.requests,
        "users": len({one["user"] for one in requests}),
        "queries": len({one["query"] for one in requests if "query" in one}),
        "batch_size": config.evaluate.batch_size,
        "beams": beams,
        "ratio": {"median": cut[1], "quartiles": [cut[0], cut[2]]},
        "clock_ratio": {"median": clock},
        "turns": [
            {"predict_cpu": ours[0], "predict_clock": ours[1], "rank_items_cpu": alone[0], "rank_items_clock": alone[1]}
            for ours, alone in turns
        ],
    }
    write(result, args.out)


if __name__ == "__main__":
    main()
