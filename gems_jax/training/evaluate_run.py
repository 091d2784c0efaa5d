"""Measuring a tuned model: both tasks, general-domain drift, simple rankers beside it, the report."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from gems_jax.config.run import Config
from gems_jax.data.dataset.tables import Dataset, Table
from gems_jax.data.preparation.few_candidates import few_candidates
from gems_jax.evaluation.compare_runs import compare_with_each
from gems_jax.evaluation.continuations import continuations
from gems_jax.evaluation.drift import general_drift
from gems_jax.evaluation.evaluate import evaluate_ranking, load_rankings
from gems_jax.evaluation.ranked_examples import readable_examples
from gems_jax.evaluation.simple_rankers import missing_lines, not_measured, simple_rankers
from gems_jax.report import write_report
from gems_jax.staging import write_json
from gems_jax.training.pretrain import heldout_text
from gems_jax.training.stages import Assets


def evaluation_tables(config: Config, dataset: Dataset) -> dict[str, Table]:
    """The rows that are measured, by task."""
    tables = {task: dataset.table(config.evaluate.split, task) for task in dataset.tasks}
    rows = config.evaluate.rows
    if rows is None:
        return tables
    rng = np.random.default_rng(0)
    return {task: table.take(np.sort(rng.permutation(len(table))[:rows])) for task, table in tables.items()}


def evaluate_run(config: Config, assets: Assets, base: Any, tuned: Any, workdir: Path) -> dict[str, Any]:
    """Writes ``eval.json`` and ``report.html``: for the model first, then once more with the rankers without a model.

    Args:
      config: of the run.
      assets: data, items, tokenizer.
      base: the base model, before items were added.
      tuned: the tuned one.
      workdir: of the run.

    Returns:
      The content of ``eval.json``.

    Raises:
      FileNotFoundError: a run to compare with has not been evaluated.
    """
    options = config.evaluate
    compared = {name: read_evaluation(Path(folder)) for name, folder in options.compare.items()}
    tables = evaluation_tables(config, assets.dataset)
    encoded = {task: assets.encode(config, table) for task, table in tables.items()}
    # Before the ranking, which takes long.
    text = heldout_text(assets.tokenizer, config, base.layout)
    results: dict[str, Any] = {"name": config.name, "method": config.train.method, "steps": config.train.steps}
    results |= evaluate_ranking(
        tuned,
        assets.items,
        tables,
        encoded,
        beams=options.beams,
        vocabulary=config.train.loss_vocabulary,
        batch_size=options.batch_size,
        samples=options.samples,
        save_to=workdir,
        progress=True,
    )
    results["general"] = general_drift(base, tuned, text, progress=True)
    if options.continuations:
        results["continuations"] = _continued(config, assets, base, tuned, text[0])
    results["comparison"] = {
        name: {
            key: value for key, value in evaluation.items() if key in tables or key in ("general", "steps", "method")
        }
        for name, evaluation in compared.items()
    }
    if options.samples:
        results["paired"] = compare_with_each(workdir, options.compare, samples=options.samples)
    results["examples"] = []
    for task, table in tables.items():
        rankings = load_rankings(workdir / f"ranking_{task}.npz")
        titles = assets.dataset.titles()
        results["examples"] += readable_examples(table, rankings["items"], rankings["scores"], titles)
    # Rankers that exhaust the memory of the machine end the process: what was measured of the model is on file then.
    _write(workdir, results | {"baselines": not_measured(tables)})
    results["baselines"] = simple_rankers(assets.dataset, tables, options.samples)
    _write(workdir, results)
    return results


def _continued(config: Config, assets: Assets, base: Any, tuned: Any, batch: Any) -> dict[str, Any]:
    if not hasattr(tuned, "start"):
        # What a registered family need not have, see `gems_jax.models.generate.greedy`.
        print(f"general text is not continued: {type(tuned).__name__} has no start(inputs, max_new_tokens)")
        return {}
    return continuations(base, tuned, assets.tokenizer, batch, rows=config.evaluate.continuations)


def _write(workdir: Path, results: dict[str, Any]) -> None:
    write_json(workdir / "eval.json", results)
    write_report(workdir)


def read_evaluation(workdir: Path) -> dict[str, Any]:
    """Another run's ``eval.json``.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is damaged.
    """
    path = workdir / "eval.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: evaluate that run before comparing with it")
    try:
        evaluation = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(evaluation, dict) or "method" not in evaluation:
            raise ValueError("it is not what evaluate writes")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}): evaluate that run again before comparing with it") from None
    return evaluation


def table_of(results: dict[str, Any]) -> str:
    """The results as a few lines of text, and below them what is missing or says little."""
    tasks = [k for k, v in results.items() if isinstance(v, dict) and "hit@10" in v]
    rows = [("", *(f"{t} hit@10" for t in tasks), *(f"{t} ndcg@10" for t in tasks), "general loss")]

    def row(name: str, measured: dict[str, Any]) -> tuple[str, ...]:
        metric = lambda task, m: f"{measured[task][m]:.3f}" if m in measured.get(task, {}) else "-"  # noqa: E731
        general = measured.get("general")
        drift = "-"
        if general and {"loss_full", "base_loss"} <= set(general):  # of a run beside this one there may be less
            drift = f"{general['loss_full']:.3f} ({general['loss_full'] - general['base_loss']:+.3f})"
        return (name, *(metric(t, "hit@10") for t in tasks), *(metric(t, "ndcg@10") for t in tasks), drift)

    rows.append(row(f"{results['name']} (this run)", results))
    rows += [row(name, measured) for name, measured in results["comparison"].items()]
    rows += [row(name, measured) for name, measured in results["baselines"].items()]
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(r, widths, strict=True)).rstrip() for r in rows]
    return "\n".join([*lines, *missing_lines(results["baselines"]), *few_candidates(results)])
