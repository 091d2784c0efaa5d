"""The results that a report compares: this run, the runs beside it and the baselines without a model."""

import dataclasses
from html import escape
from typing import Any, Literal

import numpy as np

from gems_jax.data.preparation.few_candidates import few_candidates
from gems_jax.data.text.unknown_tokens import unknown_lines
from gems_jax.evaluation.edited_catalogue import edited_lines
from gems_jax.evaluation.shared_identifiers import shared_lines
from gems_jax.evaluation.simple_rankers import missing_lines, settings_lines
from gems_jax.report.records import RunRecords

TASK_LABELS = {"rec": "Recommendation", "src": "Search"}
_BASELINE_LABELS = {
    "popularity": "Popularity",
    "popularity, same task": "Popularity in the same task",
    "cooccurrence": "Item co-occurrence",
    "co-occurrence": "Item co-occurrence",
    "co_occurrence": "Item co-occurrence",
    "bm25": "BM25",
}
_METRICS = ("hit@10", "ndcg@10")
_DASH = '<td class="none">–</td>'


@dataclasses.dataclass(frozen=True)
class ResultRow:
    """A row of the results: a baseline without a model, a run beside this one, or this run.

    Attributes:
      name: as shown.
      kind: ``"baseline"``, ``"comparison"`` or ``"run"``.
      values: entry of each task and of ``"general"``, as in ``eval.json``.
    """

    name: str
    kind: str
    values: dict[str, dict[str, Any]]

    def value(self, task: str, key: str) -> float | None:
        """A number of a task, if it was measured."""
        number = self.values.get(task, {}).get(key)
        return float(number) if isinstance(number, int | float) else None

    def interval(self, task: str, key: str) -> tuple[float, float] | None:
        """Confidence interval of a number, if there is one."""
        ends = self.values.get(task, {}).get(key + "_ci")
        return (float(ends[0]), float(ends[1])) if isinstance(ends, list | tuple) and len(ends) == 2 else None

    def shifts(self) -> dict[str, np.ndarray]:
        """How far each kernel's output moved on general text, ``[layers]`` by path, if it was measured."""
        shifts = self.values.get("general", {}).get("shift")
        return {path: np.ravel(ratios) for path, ratios in shifts.items()} if isinstance(shifts, dict) else {}

    def forgetting(self, vocabulary: Literal["full", "base"] = "full") -> float | None:
        """How much the loss on general text rose from the base model, without items, to the tuned one.

        Over all tokens, items among them, or over the base model's vocabulary alone. It is computed from losses, which
        mean the same in files of earlier versions; what those call forgetting is that over the base vocabulary.
        """
        suffix = "_full" if vocabulary == "full" else ""
        after, before = self.value("general", "loss" + suffix), self.value("general", "base_loss")
        return None if after is None or before is None else after - before


def task_label(task: str) -> str:
    """Name of a task for readers."""
    return TASK_LABELS.get(task, task.replace("_", " ").capitalize())


def methods(records: RunRecords) -> list[ResultRow]:
    """Baselines, then the runs beside this one, then this run."""
    evaluation = records.evaluation
    rows = [
        ResultRow(_BASELINE_LABELS.get(name, name), "baseline", values) for name, values in _baselines(records).items()
    ]
    rows += [ResultRow(name, "comparison", values) for name, values in evaluation.get("comparison", {}).items()]
    own = {key: evaluation[key] for key in [*records.tasks(), "general"] if key in evaluation}
    if own:
        rows.append(ResultRow(str(evaluation.get("name", "GEMS (this run)")), "run", own))
    return rows


def notes(records: RunRecords) -> list[str]:
    """What the table does not show: an edited catalogue, unknown text, ties, few candidates, baselines not measured."""
    few = few_candidates({task: records.evaluation.get(task) for task in records.tasks()}, task_label)
    baselines = {_BASELINE_LABELS.get(name, name): tasks for name, tasks in _baselines(records).items()}
    edited = edited_lines(records.evaluation, task_label)
    said = [*missing_lines(baselines, task_label), *settings_lines(baselines, task_label)]
    unknown = unknown_lines(records.evaluation.get("unknown_tokens", {}), records.evaluation.get("unknown_words"))
    return [
        *edited,
        *unknown,
        *shared_lines(records.evaluation),
        *few,
        *said,
        *records.evaluation.get("not_compared", ()),
    ]


def _baselines(records: RunRecords) -> dict[str, Any]:
    return records.evaluation.get("baselines", {})


def results_table(rows: list[ResultRow], tasks: list[str]) -> str:
    """The results as an HTML table: two metrics of each task, forgetting and the choices kept.

    Args:
      rows: methods, top to bottom.
      tasks: names of the tasks.

    Returns:
      HTML text; the best value of each column is marked.
    """
    with_drift = any(row.forgetting() is not None for row in rows)
    span = len(_METRICS)
    groups = "".join(f'<th class="group" colspan="{span}">{escape(task_label(task))}</th>' for task in tasks)
    heads = "".join(f"<th>{metric}</th>" for _ in tasks for metric in _METRICS)
    with_choices = any(row.value("general", "top1_agreement") is not None for row in rows)
    columns = [marked_column(rows, task, metric) for task in tasks for metric in _METRICS]
    if with_drift or with_choices:
        groups += f'<th class="group" colspan="{with_drift + with_choices}">General text</th>'
    if with_drift:
        heads += "<th>forgetting</th>"
        columns.append(_drift_column(rows))
    if with_choices:
        heads += "<th>top-1 kept</th>"
        columns.append(_choices_column(rows))
    body, seen_run = "", False
    for number, row in enumerate(rows):
        classes = ["ours"] if row.kind == "run" else []
        if row.kind != "baseline" and not seen_run:
            seen_run = True
            classes += ["first-run"] if number else []
        cells = "".join(column[number] for column in columns)
        body += f'<tr class="{" ".join(classes)}"><td>{escape(row.name)}</td>{cells}</tr>'
    return (
        f'<div class="card scroll"><table><thead><tr><th class="group"></th>{groups}</tr>'
        f"<tr><th>Method</th>{heads}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def marked_column(rows: list[ResultRow], task: str, metric: str) -> list[str]:
    """A metric's cells, a row each, with intervals; the best is marked."""
    values = [row.value(task, metric) for row in rows]
    best = max((value for value in values if value is not None), default=None)
    cells = []
    for row, value in zip(rows, values, strict=True):
        if value is None:
            cells.append(_DASH)
            continue
        interval = row.interval(task, metric)
        note = f'<span class="ci">{interval[0]:.3f} to {interval[1]:.3f}</span>' if interval else ""
        mark = ' class="best"' if value == best else ""
        cells.append(f"<td{mark}><b>{value:.3f}</b>{note}</td>")
    return cells


def _drift_column(rows: list[ResultRow]) -> list[str]:
    changes = [row.forgetting() for row in rows]
    best = min((forgetting for forgetting in changes if forgetting is not None), default=None)
    cells = []
    for row, forgetting in zip(rows, changes, strict=True):
        if forgetting is None:
            cells.append(_DASH)
            continue
        base = row.forgetting("base")
        note = f'<span class="ci">{base:+.2f} without items</span>' if base is not None else ""
        mark = ' class="best"' if forgetting == best else ""
        cells.append(f"<td{mark}><b>{forgetting:+.2f}</b>{note}</td>")
    return cells


def _choices_column(rows: list[ResultRow]) -> list[str]:
    shares = [row.value("general", "top1_agreement") for row in rows]
    best = max((share for share in shares if share is not None), default=None)
    return [
        _DASH if share is None else ('<td class="best">' if share == best else "<td>") + f"<b>{share:.1%}</b></td>"
        for share in shares
    ]
