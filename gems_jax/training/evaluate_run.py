"""Measuring a tuned model: both tasks, general-domain drift, simple rankers beside it, the report."""

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from gems_jax.config.run import Config
from gems_jax.data.dataset.tables import Dataset, Table
from gems_jax.data.preparation.few_candidates import few_candidates
from gems_jax.data.text.unknown_tokens import unknown_lines
from gems_jax.evaluation.baselines import baselines
from gems_jax.evaluation.beside import put_beside
from gems_jax.evaluation.candidate_sets import CATALOGUE, candidate_sets
from gems_jax.evaluation.continuations import continuations
from gems_jax.evaluation.drift import general_drift
from gems_jax.evaluation.edited_catalogue import edited_catalogue, edited_lines
from gems_jax.evaluation.evaluate import evaluate_ranking, load_rankings
from gems_jax.evaluation.fact_summary import fact_lines
from gems_jax.evaluation.facts import kept_facts, known_facts
from gems_jax.evaluation.ranked_examples import readable_examples
from gems_jax.evaluation.shared_identifiers import shared_identifiers, shared_lines
from gems_jax.evaluation.simple_rankers import missing_lines, not_measured, settings_lines, simple_rankers
from gems_jax.evaluation.transitions import new_by_task
from gems_jax.identifiers.text_embeddings import text_embeddings
from gems_jax.report import write_report
from gems_jax.staging import write_json
from gems_jax.training.pretrain import heldout_text
from gems_jax.training.stages import Assets
from gems_jax.training.unknown_text import unknown_text
from gems_jax.training.workdir.copies import evaluated
from gems_jax.training.workdir.edits import CatalogueEdits


def evaluation_tables(config: Config, dataset: Dataset) -> dict[str, Table]:
    """The rows that are measured, by task."""
    tables = {task: dataset.table(config.evaluate.split, task) for task in dataset.tasks}
    rows = config.evaluate.rows
    if rows is None:
        return tables
    rng = np.random.default_rng(0)
    return {task: table.take(np.sort(rng.permutation(len(table))[:rows])) for task, table in tables.items()}


def evaluate_run(
    config: Config, assets: Assets, base: Any, tuned: Any, workdir: Path, edits: CatalogueEdits | None = None
) -> dict[str, Any]:
    """Writes ``eval.json`` and ``report.html``: for the model first, then once more with the rankers without a model.

    Args:
      config: of the run.
      assets: data, items, tokenizer.
      base: the base model, before items were added.
      tuned: the tuned one.
      workdir: of the run.
      edits: of the catalogue since tuning, which ``assets`` has.

    Returns:
      The content of ``eval.json``.

    Raises:
      FileNotFoundError: a run to compare with has not been evaluated.
    """
    options = config.evaluate
    removed = assets.items.removed if edits is not None else frozenset()
    size = len(assets.dataset.items) - len(removed)
    folders = {name: str(evaluated(folder)) for name, folder in options.compare.items()}
    others = {name: read_evaluation(Path(folder)) for name, folder in folders.items()}
    rows = evaluation_tables(config, assets.dataset)
    tables, whole = candidate_sets(rows, options.candidates, size)
    encoded = {task: assets.encode(config, table) for task, table in tables.items()}
    new = new_by_task(assets.dataset, rows)
    # Before the ranking, which takes long.
    text = heldout_text(assets.tokenizer, config, base.layout)
    ranked = functools.partial(
        evaluate_ranking,
        tuned,
        assets.items,
        encoded=encoded,
        beams=options.beams,
        vocabulary=config.train.loss_vocabulary,
        batch_size=options.batch_size,
        samples=options.samples,
        new=new,
        progress=True,
    )
    results: dict[str, Any] = {"name": config.name, "method": config.train.method, "steps": config.train.steps}
    results |= {"catalogue_size": size} | ranked(tables=tables, save_to=workdir)
    if config.items.collisions == "group":
        results["shared"] = shared_identifiers(assets.items)
    unknown = unknown_text(config, assets.dataset, assets.tokenizer, tables)
    results["unknown_tokens"], results["unknown_words"] = unknown
    if edits is not None and edits.edits:
        results["edited"] = edited_catalogue(edits.counts(), removed, (tables, whole))
    # Rankings of an earlier evaluation would be compared with those of this one.
    shutil.rmtree(workdir / CATALOGUE, ignore_errors=True)
    if whole is not None:
        results[CATALOGUE] = ranked(tables=whole, save_to=workdir / CATALOGUE)
    elif options.candidates == "auto" and any(table.negatives is not None for table in tables.values()):
        print(f"evaluate: {size:,} items are many: rows are ranked among their negatives alone (evaluate.candidates)")
    results["general"] = general_drift(base, tuned, text, progress=True)
    if options.facts:
        facts = known_facts(base, assets.tokenizer)
        numbers, results["facts"] = kept_facts(facts, tuned, assets.tokenizer, samples=options.samples)
        results["general"] |= numbers
    if options.continuations:
        results["continuations"] = _continued(config, assets, base, tuned, text[0])
    put_beside(results, others, folders, workdir, options.samples)
    results["examples"] = []
    for task, table in tables.items():
        rankings = load_rankings(workdir / f"ranking_{task}.npz")
        titles = assets.dataset.titles()
        results["examples"] += readable_examples(table, rankings["items"], rankings["scores"], titles)
    # Rankers that exhaust the memory of the machine end the process: what was measured of the model is on file then.
    places = [(results, tables)] + ([] if whole is None else [(results[CATALOGUE], whole)])
    read = functools.partial(text_embeddings, base, assets.tokenizer, progress=True)
    rankers = baselines(options, assets.dataset, read, removed, workdir / "baselines")
    for place, of_place in places:
        place["baselines"] = not_measured(of_place, rankers)
    _write(workdir, results)
    for place, of_place in places:
        place["baselines"] = simple_rankers(assets.dataset, of_place, options.samples, rankers, removed, new)
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
    parts = [_lines_of(results, results)]
    if CATALOGUE in results:
        parts += ["", f"among all {results['catalogue_size']:,} items:", _lines_of(results, results[CATALOGUE])]
    said = [*shared_lines(results), *settings_lines(results["baselines"]), *edited_lines(results)]
    said += fact_lines(results.get("general", {}))
    said += unknown_lines(results.get("unknown_tokens", {}), results.get("unknown_words"))
    return "\n".join([*parts, *said, *results.get("not_compared", ())])


def _lines_of(results: dict[str, Any], place: dict[str, Any]) -> str:
    """The table of one set of candidates.

    Args:
      results: of the run.
      place: these, or their part of the whole catalogue.
    """
    tasks = [k for k, v in place.items() if isinstance(v, dict) and "hit@10" in v]
    heads = ("general loss",) if place is results else ()
    rows = [("", *(f"{t} hit@10" for t in tasks), *(f"{t} ndcg@10" for t in tasks), *heads)]

    def row(name: str, measured: dict[str, Any]) -> tuple[str, ...]:
        metric = lambda task, m: f"{measured[task][m]:.3f}" if m in measured.get(task, {}) else "-"  # noqa: E731
        general = measured.get("general")
        drift = "-"
        if general and {"loss_full", "base_loss"} <= set(general):  # of a run beside this one there may be less
            drift = f"{general['loss_full']:.3f} ({general['loss_full'] - general['base_loss']:+.3f})"
        cells = (name, *(metric(t, "hit@10") for t in tasks), *(metric(t, "ndcg@10") for t in tasks), drift)
        return cells[: len(rows[0])]

    rows.append(row(f"{results['name']} (this run)", place))
    rows += [row(name, measured) for name, measured in place["comparison"].items()]
    rows += [row(name, measured) for name, measured in place["baselines"].items()]
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(r, widths, strict=True)).rstrip() for r in rows]
    return "\n".join([*lines, *missing_lines(place["baselines"]), *few_candidates(place)])
