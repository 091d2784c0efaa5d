"""The page of a study, made from its ``study.json`` alone."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gems_jax.evaluation.fact_summary import fact_lines
from gems_jax.evaluation.simple_rankers import missing_lines, settings_lines
from gems_jax.report.results import task_label
from gems_jax.staging import write_text
from gems_jax.study.figures import figures
from gems_jax.study.methods import study_methods
from gems_jax.study.old_names import FORGETTING, in_today_s_names
from gems_jax.study.tables import (
    budget_table,
    comparison_table,
    frontier_table,
    grid_table,
    reference_of,
    summary_table,
)

_FORGETTING = f"general/{FORGETTING}"

_LEVEL = 0.05


def write_page(results: Path, page: Path) -> None:
    """Writes a Markdown page and, in a folder of its name beside it, its pictures.

    Args:
      results: a ``study.json``.
      page: the file to write.

    Raises:
      FileNotFoundError: no results there.
      ValueError: the file holds something else, or nothing finished.
    """
    summary = read_summary(results)
    tasks = task_names(summary)
    shown = {}
    for picture in figures(summary, tasks):
        write_text(page.with_suffix("") / f"{picture.name}.svg", picture.svg)
        shown[picture.name] = (
            f"## {picture.heading}\n\n![{picture.heading}]({page.stem}/{picture.name}.svg)\n\n{picture.caption}\n"
        )
    write_text(page, page_text(summary, tasks, shown, page.name))


def read_summary(path: Path) -> dict[str, Any]:
    """A ``study.json``, checked."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: run gems-jax compare first, or name a study.json as --results")
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): run gems-jax compare --summarise again") from None
    if not isinstance(summary, dict) or summary.get("format") != 1 or "methods" not in summary:
        raise ValueError(f"{path} is no result of gems-jax compare (format 1 is needed)")
    if not any("numbers" in method for method in summary["methods"]):
        raise ValueError(f"{path} has no method with a finished grid yet: let gems-jax compare go on")
    return dict(in_today_s_names(summary))


def task_names(summary: Mapping[str, Any]) -> list[str]:
    """The tasks of a study."""
    return list(next(row["test"] for row in summary["rows"] if "test" in row))


def page_text(summary: Mapping[str, Any], tasks: list[str], pictures: Mapping[str, str], name: str) -> str:
    """The page as Markdown.

    Args:
      summary: content of ``study.json``.
      tasks: names.
      pictures: sections by the picture's name.
      name: of the page's file.
    """
    _, reference = reference_of(summary)
    parts = [
        "# How the methods compare",
        f"A command makes this page from stored results (see the end); change those, not the page.\n\n"
        f"{_setting(summary)}",
        pictures.get("frontier", ""),
        frontier_table(summary, tasks),
        f"Validation {summary['study']['metric']} of {' / '.join(map(task_label, tasks))} with the first seed: the "
        "best run by the mean over tasks among the grid's runs that forget no more than that (nats a token); –: no "
        "such run. Area: the mean of the best ranking within a limit, over all limits to the one named, 0 where no run "
        f"forgets so little.{_equal_forgetting(summary, reference)}",
        "## Results",
        summary_table(summary, tasks),
        f"Test rows, mean ± standard deviation over seeds; {_choice(summary)} ▲ and ▼: better and worse than "
        f"{reference} on the same users, p < {_LEVEL} after correction. Forgetting: increase of the loss a token on "
        "general text, over all tokens, items among them, from that of the base model without items. Same choice: "
        "share of general text's tokens whose most probable token of the base vocabulary is still the base model's. "
        "Seconds: of runs on the machine where most methods were run; – for other machines.",
        *_remarks(summary),
        _verdict(summary, tasks),
        *_budget(summary, tasks),
        *(section for picture, section in pictures.items() if picture != "frontier"),
        f"## Against {reference}, user by user",
        comparison_table(summary, tasks),
        "Difference of the means over the seeds that both have, with a 95 % interval by bootstrap over users; p by "
        "permutation of users' differences, corrected by Holm for the number of methods. Interval and p say what other "
        "users would change; the standard deviations above say what other seeds change.",
        "## The grid",
        grid_table(summary, tasks),
        f"Validation {summary['study']['metric']} of {' / '.join(map(task_label, tasks))} and forgetting, the increase "
        "of the loss on general text, with the first seed; the best mean over tasks is bold.",
        "## Made by",
        _made_by(summary, name),
    ]
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def _setting(summary: Mapping[str, Any]) -> str:
    settings, study, base = summary["settings"], summary["study"], summary["base"]
    train, items = settings["train"], settings["items"]
    lines = [
        f"- Data: `{settings['data']['name']}`, tasks and prompts {', '.join(f'`{t}`' for t in items['prompts'])}; "
        f"{train['steps']:,} steps of {train['batch_size']} rows of each task, the same rows in the same order for "
        "every method of a seed."
    ]
    if base:
        loss, unigram = base["general"]["loss"], base["unigram_loss"]
        lines.append(
            f"- Base model: loss {loss:.3f} a token on held-out general text (a unigram model: {unigram:.3f}, "
            f"{unigram - loss:.2f} worse)."
        )
    main = [study_methods()[name].label for name in study["main"] if name in study["methods"]]
    rates = f"learning rates {', '.join(f'{rate:g}' for rate in study['grid'])}"
    rates = rates if study["grid"] else "each one's own learning rate"
    if study.get("item_grid"):
        rates += f", with {', '.join(f'{rate:g}' for rate in study['item_grid'])} for item rows,"
    lines.append(
        f"- {study['finished']} of {study['rows']} runs are finished: {rates} for every method with one "
        "seed, then "
        f"{study['seeds']} seeds of {', '.join(main)}, {study['rest_seeds']} of the others."
    )
    return "\n".join(lines)


def _equal_forgetting(summary: Mapping[str, Any], reference: str) -> str:
    """What the marks at limits on forgetting say, where there are any."""
    tested = [entry for by_method in summary.get("at_equal_forgetting", {}).values() for entry in by_method.values()]
    if not any("against" in entry for entry in tested):
        return ""
    return (
        f" ▲ and ▼: its test rows are better and worse than those of {reference} within the same limit, ndcg@10 user "
        f"by user, p < {_LEVEL} after correction."
    )


def _choice(summary: Mapping[str, Any]) -> str:
    """How the learning rates were come by."""
    grid = summary["study"]["grid"]
    if len(grid) < 2 and len(summary["study"].get("item_grid", [])) < 2:
        return f"one learning rate for all, {grid[0]:g}." if grid else "each method has its own learning rate."
    rates = "rates of kernels and item rows of each method were"
    subject = rates if summary["study"].get("item_grid") else "rate of each method was"
    return f"the learning {subject} chosen on validation rows from the same grid."


def _remarks(summary: Mapping[str, Any]) -> list[str]:
    remarks = []
    edge = [m["label"] for m in summary["methods"] if m["at_edge"]]
    if edge:
        remarks.append(
            f"The best learning rate lies at an end of the grid for {'; '.join(edge)}: a wider grid may find better."
        )
    diverged = [f"{m['label']} ({m['diverged']})" for m in summary["methods"] if m["diverged"]]
    if diverged:
        remarks.append(f"Runs that diverged, and are in no mean: {'; '.join(diverged)}.")
    missing = [m["label"] for m in summary["methods"] if "numbers" not in m]
    if missing:
        remarks.append(f"Not finished, or every run diverged: {'; '.join(missing)}.")
    general: Mapping[str, Any] = next((row["general"] for row in summary["rows"] if "general" in row), {})
    if "facts_kept" not in general:  # else the table has each method's
        remarks += [f"{line[0].upper()}{line[1:]}." for line in fact_lines(general)]
    rankers = summary["base"].get("rankers", {})
    remarks += [f"{line}." for line in (*missing_lines(rankers, task_label), *settings_lines(rankers, task_label))]
    return remarks


def _verdict(summary: Mapping[str, Any], tasks: list[str]) -> str:
    """GEMS beside joint AdamW in words, each word following from a number."""
    finished, (reference, _) = {m["name"]: m for m in summary["methods"] if "numbers" in m}, reference_of(summary)
    if reference == "gems" or not {"gems", reference} <= set(finished):
        return ""
    return _beside(finished["gems"], finished["gems"]["label"], summary, tasks)


def _beside(ours: Mapping[str, Any], label: str, summary: Mapping[str, Any], tasks: list[str]) -> str:
    reference, _ = reference_of(summary)
    theirs = next(m for m in summary["methods"] if m["name"] == reference)
    sentences = []
    for task in tasks:
        test = ours.get("against", {}).get(f"{task}/ndcg@10")
        if test:
            clear = test["p_corrected"] < _LEVEL
            word = ("better" if test["difference"] > 0 else "worse") if clear else "not told apart"
            sentences.append(f"{task_label(task)}: {word} ({test['difference']:+.4f} ndcg@10)")
    changes = [m["numbers"][_FORGETTING]["mean"] for m in (ours, theirs)]
    share = f" (ratio {changes[0] / changes[1]:.2f})" if changes[1] > 0 else ""
    sentences.append(f"Forgetting: {changes[0]:.3f}, with {theirs['label']} {changes[1]:.3f}{share}")
    return f"**{label} beside {theirs['label']}.** " + ". ".join(sentences) + "."


def _budget(summary: Mapping[str, Any], tasks: list[str]) -> list[str]:
    """Rankings of the methods within a limit on forgetting, a share of the reference's."""
    study, (reference, label) = summary["study"], reference_of(summary)
    if study.get("forgetting_allowed") is None:
        return []
    within = {m["name"]: m["within_budget"] for m in summary["methods"] if "within_budget" in m}
    searched = [m for m in summary["methods"] if m["learning_rate"] is not None and m["name"] != reference]
    # Earlier studies chose by another figure than the table has.
    over = "" if "budget_over" in study else " over the base model's own vocabulary"
    nothing = [m["label"] for m in searched if m["name"] not in within]
    return [
        f"## Within {study['budget']:g} of what {label} forgets",
        budget_table(summary, tasks),
        f"Each method has its best setting on validation rows among the grid's runs that forget at most "
        f"{study['forgetting_allowed']:.2f}, {study['budget']:g} of the mean forgetting of {label}"
        f"{over}, and was run with "
        "it for all of its seeds. Marks as above."
        + (f" Methods without such a run: {', '.join(nothing)}." if nothing else ""),
        *([_beside(within["gems"], study_methods()["gems"].label, summary, tasks)] if "gems" in within else []),
    ]


def _made_by(summary: Mapping[str, Any], name: str) -> str:
    command = summary["command"]
    workdir = re.search(r" --workdir (\S+)", command)
    results = f"{workdir[1]}/study.json" if workdir else "study.json"
    lines = [f"```bash\n{command}\ngems-jax compare --results {results} --page docs/{name}\n```"]
    circumstances = summary["circumstances"]
    for entry in circumstances:
        where = entry["where"]
        versions = ", ".join(f"{n} {v}" for n, v in where.get("versions", {}).items())
        text = (
            f"{where.get('machine', 'unknown machine')}, {where.get('device', 'unknown device')}; Python "
            f"{where.get('python', '?')}, {versions}; {where.get('date', 'no date')}."
        )
        if len(circumstances) > 1:
            runs = f"{entry['rows']} run{'' if entry['rows'] == 1 else 's'}"
            text = f"{', '.join(study_methods()[m].label for m in entry['methods'])} ({runs}): {text}"
        lines.append(text)
    return "\n\n".join(lines)
