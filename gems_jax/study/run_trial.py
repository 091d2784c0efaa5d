"""One trial of a study: tuned, measured, written down."""

import contextlib
import gc
import math
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from gems_jax.config.run import Config
from gems_jax.config.text_task import trained_tasks
from gems_jax.data.batching.pipeline import task_batches
from gems_jax.evaluation.drift import general_drift
from gems_jax.evaluation.evaluate import evaluate_ranking
from gems_jax.evaluation.facts import kept_facts
from gems_jax.study.curves import curves
from gems_jax.study.measure import circumstances, peak_memory, reset_peak_memory
from gems_jax.study.methods import configured
from gems_jax.study.old_names import FORGETTING
from gems_jax.study.shared import Shared
from gems_jax.study.spectra import gradient_spectra
from gems_jax.study.trials import Trial, write_result
from gems_jax.training.build import token_roles
from gems_jax.training.optimiser.chain import make_optimiser
from gems_jax.training.stages import Assets
from gems_jax.training.task_gradients import projects
from gems_jax.training.trainable import split_model
from gems_jax.training.tune import tune
from gems_jax.training.workdir.files import Log, as_json


def run_trial(config: Config, trial: Trial, shared: Shared, workdir: Path, spectra: bool) -> dict[str, Any]:
    """Tunes a trial, or goes on with it, and writes its ``result.json`` last.

    The checkpoints of a finished trial are removed; rankings of the test rows, metrics and the log stay.

    Args:
      config: of the study.
      trial: what to run.
      shared: of the study.
      workdir: of the study.
      spectra: whether those of gradients are looked at, too.

    Returns:
      What ``result.json`` holds.

    Raises:
      Stopped: after a signal; run it again to go on.
      ValueError: options that cannot be.
    """
    run = configured(config, trial.method, trial.rates, trial.seed, shared.width)
    folder = trial.folder(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    begin, processor = time.perf_counter(), time.process_time()
    can_measure = reset_peak_memory()
    result: dict[str, Any] = {"resumed": (folder / "metrics.jsonl").is_file()}
    assets = shared.assets(run)
    null_space = shared.null_space(run)
    begin_tuning = time.perf_counter()
    try:
        with (folder / "log.txt").open("a", encoding="utf-8") as log, contextlib.redirect_stdout(log):
            tuned = tune(run, assets, null_space, folder, shared.programs)
    except ValueError as error:
        if not _refused(folder):
            raise
        result["diverged"] = str(error)
    else:
        result["tune_seconds"] = time.perf_counter() - begin_tuning
        with (folder / "log.txt").open("a", encoding="utf-8") as log, contextlib.redirect_stdout(log):
            result |= measured(run, shared, tuned, folder)
            if spectra:
                batch = _first_batch(run, assets)
                result["spectra"] = {
                    "before": shared.spectra_before(run, batch),
                    "after": gradient_spectra(run, tuned, batch, tuple(assets.dataset.tasks)),
                }
        del tuned
    result["curves"] = curves(folder) if (folder / "metrics.jsonl").is_file() else {}
    result |= {
        "seconds": time.perf_counter() - begin,
        "processor_seconds": time.process_time() - processor,
        "peak_memory": peak_memory() if can_measure else None,
        "optimiser_bytes": optimiser_bytes(run, assets, null_space),
        "circumstances": circumstances(),
        "config": as_json(run),
    }
    write_result(workdir, trial, result)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    gc.collect()
    return result


def measured(config: Config, shared: Shared, tuned: Any, folder: Path) -> dict[str, Any]:
    """Both splits' metrics and the drift on general text; rankings of the test rows go to ``folder``."""
    begin = time.perf_counter()
    assets = shared.assets(config)
    drift = general_drift(assets.model, tuned, shared.text, shift=shared.shift(config))
    if not math.isfinite(drift["loss"]):
        return {"diverged": f"the loss on general text is {drift['loss']}"}
    if config.evaluate.facts:
        drift |= kept_facts(shared.facts(), tuned, assets.tokenizer, samples=0)[0]
    measurements: dict[str, Any] = {"general": drift}
    for split, tables in shared.tables.items():
        measurements[split] = evaluate_ranking(
            tuned,
            assets.items,
            tables,
            shared.encoded(config, split),
            beams=config.evaluate.beams,
            vocabulary=config.train.loss_vocabulary,
            batch_size=config.evaluate.batch_size,
            samples=0,
            save_to=folder if split == "test" else None,
        )
    return measurements | {"evaluate_seconds": time.perf_counter() - begin}


def optimiser_bytes(config: Config, assets: Assets, null_space: Any) -> int:
    """Memory of the optimiser's state, null space included, from shapes alone."""
    _, params, _ = split_model(assets.model, config)
    tasks = trained_tasks(config.train, assets.dataset.tasks)
    tx = make_optimiser(config, len(tasks), null_space, projects(config, params))
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(jax.eval_shape(tx.init, params)))


def _first_batch(config: Config, assets: Assets) -> dict[str, Any]:
    """Arrays of training, the same for every trial of a seed."""
    tables = {task: assets.dataset.table("train", task) for task in assets.dataset.tasks}
    encoded = {task: assets.encode(config, table) for task, table in tables.items()}
    roles: dict[str, Any] = token_roles(assets.model)
    batch = next(task_batches(encoded, config.train.batch_size, config.items.max_length, config.train.seed, **roles))
    return {name: value for name, value in batch.items() if name != "row_index"}


def _refused(folder: Path) -> bool:
    """Whether a run ended because its updates were refused as not finite."""
    lines = list(Log(folder, False).lines())
    return bool(lines) and any(name.startswith("refused/") for name in lines[-1])


def result_line(trial: Trial, result: Mapping[str, Any], metric: str) -> str:
    """The line that a person reads when a trial is finished.

    Example:
      >>> result = {"seconds": 93.4, "valid": {"rec": {"ndcg@10": 0.25}}, "general": {FORGETTING: 0.51}}
      >>> result_line(Trial("gems", 3e-3, 0), result, "ndcg@10")
      'gems, learning rate 0.003, seed 0: valid ndcg@10 rec 0.250, general loss +0.510, 93 s'
    """
    if "valid" not in result:
        return f"{trial}: diverged, {result['seconds']:.0f} s"
    tasks = " ".join(f"{task} {metrics[metric]:.3f}" for task, metrics in result["valid"].items())
    forgetting = result["general"][FORGETTING]
    return f"{trial}: valid {metric} {tasks}, general loss {forgetting:+.3f}, {result['seconds']:.0f} s"
