"""How the rankings of a tuned run change where its weights are rounded, as an export or an engine rounds them.

    OPENBLAS_NUM_THREADS=1 python benchmarks/export_dtypes.py --workdir runs/demo/gems \\
        --out benchmarks/results/export_dtypes.json

Of the first ``--rows`` test rows of each task the run's model ranks as many items as it has, up to ``--beams``, and so
do

* ``bfloat16``: weights and products, as ``gems-jax export --dtype bfloat16`` writes them;
* ``int8 kernels``: each column of a kernel rounded to 255 values between the largest and its negative, products as
  before: what engines that quantise weights alone do when they load a folder;
* ``int8``: the rows of the tables of tokens and items, too.

Of each: how many of the run's first ten are among its first ten, Kendall's tau over all that both rank and over the
run's first ten, how often both agree on the first, and hit@10 and ndcg@10.
"""

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from result_file import circumstances, write
from scipy.stats import kendalltau
from serve import of_run

from gems_jax.models.params import params_of, with_dtype
from gems_jax.ranking.rank_items import rank_items
from gems_jax.serving.prompts import padded

TOP = 10


def as_int8(leaf: jax.Array, axis: int) -> jax.Array:
    """The values that 8 bits and a scale for each slice along an axis stand for."""
    scale = jnp.maximum(jnp.max(jnp.abs(leaf), axis=axis, keepdims=True), 1e-30) / 127
    return jnp.round(leaf / scale) * scale


def in_int8(model: Any, tables: bool) -> Any:
    """The model with rounded kernels ``[..., in, out]`` and, if asked for, tables ``[tokens, d_model]``."""
    params = params_of(model)
    for name, leaf in params.items():
        if name.endswith("/kernel"):
            params[name] = as_int8(leaf, -2)
        elif tables and name.endswith("/embedding") and leaf.ndim == 2:
            params[name] = as_int8(leaf, -1)
    return type(model).from_params(model.config, params)


def rankings(model: Any, prompts: list[np.ndarray], items: Any, beams: int, batch: int, options: dict[str, Any]) -> Any:
    """Item numbers ``[R, beams]``, best first."""
    width = max(map(len, prompts))
    found = []
    for first in range(0, len(prompts), batch):
        inputs = padded(prompts[first : first + batch], batch, width, model.config.pad_token_id)
        found.append(np.asarray(rank_items(model, inputs, items, k=beams, beams=beams, **options)[0]))
    return np.concatenate(found)[: len(prompts)]


def agreement(ours: np.ndarray, other: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """How two rankings ``[R, beams]`` agree, and how good the other is."""
    overlap, whole, top, first = [], [], [], []
    for a, b in zip(ours.tolist(), other.tolist(), strict=True):
        place = {item: position for position, item in enumerate(b) if item >= 0}
        both = [place[item] for item in a if item in place]
        overlap.append(len(set(a[:TOP]) & set(b[:TOP])) / TOP)
        whole.append(kendalltau(range(len(both)), both).statistic)
        top.append(kendalltau(range(TOP), [place.get(item, len(b)) for item in a[:TOP]]).statistic)
        first.append(a[0] == b[0])
    hits = other[:, :TOP] == target[:, None]
    gains = (hits / np.log2(np.arange(TOP) + 2)).sum(axis=1)
    return {
        "overlap@10": float(np.mean(overlap)),
        "kendall_tau": float(np.mean(whole)),
        "kendall_tau_top10": float(np.mean(top)),
        "same_first": float(np.mean(first)),
        "hit@10": float(hits.any(axis=1).mean()),
        "ndcg@10": float(gains.mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True, help="of a tuned run")
    parser.add_argument("--rows", type=int, default=200, help="test rows of each task")
    parser.add_argument("--beams", type=int, default=500)
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    config, assets = of_run(args.workdir)
    model = assets.model
    models = {
        model.config.param_dtype: model,
        "bfloat16": with_dtype(model, "bfloat16"),
        "int8 kernels": in_int8(model, tables=False),
        "int8": in_int8(model, tables=True),
    }
    beams = min(args.beams, assets.items.num_items)
    tasks: dict[str, Any] = {}
    for task in assets.dataset.tasks:
        table = assets.dataset.table("test", task)
        table = table.take(range(min(args.rows, len(table))))
        encoded = assets.encode(config, table)
        prompts = [encoded.tokens_of(row) for row in range(len(table))]
        found = {
            name: rankings(
                each, prompts, assets.items, beams, args.batch_size, {"vocabulary": config.train.loss_vocabulary}
            )
            for name, each in models.items()
        }
        ours = found[model.config.param_dtype]
        tasks[task] = {name: agreement(ours, other, table.target) for name, other in found.items()}
        for name, values in tasks[task].items():
            print(f"{task} {name}: " + ", ".join(f"{key} {value:.4f}" for key, value in values.items()), flush=True)
    result = {
        **circumstances("jax", "jaxlib", device=jax.devices()[0].device_kind),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(model)),
        "items": assets.items.num_items,
        "beams": beams,
        "rows": args.rows,
        "tasks": tasks,
    }
    write(result, args.out)


if __name__ == "__main__":
    main()
