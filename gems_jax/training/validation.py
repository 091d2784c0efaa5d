"""Validation while a run goes on: it touches nothing of the training."""

from collections.abc import Callable

import jax
import numpy as np

from gems_jax.config.metric_names import metric_names
from gems_jax.config.run import Config
from gems_jax.evaluation.drift import general_loss
from gems_jax.evaluation.evaluate import evaluate_ranking
from gems_jax.training.build import TrainingRun
from gems_jax.training.distributed.mesh import gathered
from gems_jax.training.pretrain import heldout_text
from gems_jax.training.stages import Assets
from gems_jax.training.trainable import join_model, split_model
from gems_jax.types import PyTree


def validator(config: Config, assets: Assets, run: TrainingRun) -> Callable[[PyTree], dict[str, float]]:
    """A function of parameters giving metrics of a fixed choice of validation rows, and general loss.

    All processes call it, the first one computes, all get its numbers.
    """
    graphdef, _, _ = split_model(assets.model, config)
    frozen = gathered(run.frozen, run.mesh)
    first = jax.process_index() == 0
    rows = config.train.eval_rows
    tables = {}
    for task in assets.dataset.tasks if first else ():
        table = assets.dataset.table("valid", task)
        tables[task] = table.take(np.sort(np.random.default_rng(0).permutation(len(table))[:rows]))
    encoded = {task: assets.encode(config, table) for task, table in tables.items()}
    text = heldout_text(assets.tokenizer, config, assets.model.layout) if first else []
    names = metric_names(run.tasks)

    def measure(params: PyTree) -> list[float]:
        model = join_model(graphdef, params, frozen)
        metrics = evaluate_ranking(
            model,
            assets.items,
            tables,
            encoded,
            beams=config.evaluate.beams,
            vocabulary=config.train.loss_vocabulary,
            batch_size=config.evaluate.batch_size,
            samples=0,
        )
        ranked = [float(metrics[task][name]) for task in run.tasks for name in ("hit@10", "ndcg@10")]
        return [*ranked, general_loss(model, text)["loss"]]

    def validate(params: PyTree) -> dict[str, float]:
        whole = gathered(params, run.mesh)
        values = np.asarray(measure(whole) if first else [0.0] * len(names), np.float64)
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            # As integers: float64 would arrive as float32.
            values = multihost_utils.broadcast_one_to_all(values.view(np.int32)).view(np.float64)
        return dict(zip(names, (float(value) for value in values), strict=True))

    return validate
