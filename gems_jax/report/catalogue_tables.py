"""The report's tables of rankings among the whole catalogue."""

from collections.abc import Mapping
from html import escape
from typing import Any

from gems_jax.report.records import RunRecords
from gems_jax.report.results import ResultRow, marked_column, results_table, task_label

_METRICS = ("hit", "ndcg")
_CUTOFFS = (5, 10, 20)
_NEW = "new_transition"


def among(evaluation: Mapping[str, Any], tasks: list[str]) -> str:
    """What the rows of an evaluation were ranked among, in words; empty where it is not known.

    Args:
      evaluation: content of an ``eval.json``, or its part of the whole catalogue.
      tasks: names of its tasks.
    """
    sizes = {int(evaluation[task]["candidates"]) for task in tasks if "candidates" in evaluation.get(task, {})}
    if len(sizes) != 1:
        return ""
    (size,) = sizes
    if size == evaluation.get("catalogue_size"):
        return f"the whole catalogue of {size:,} items"
    return f"{size:,} items: itself and {size - 1:,} sampled ones"


def catalogue_section(records: RunRecords, rows: list[ResultRow], tasks: list[str]) -> str:
    """The tables of all methods among the whole catalogue, beside those among sampled items.

    Args:
      records: of the catalogue, see `RunRecords.of_catalogue`.
      rows: of the catalogue, top to bottom.
      tasks: names of the tasks.

    Returns:
      HTML text.
    """
    what = among(records.evaluation, tasks)
    lead = f"The right item among {what}: a harder question, whose numbers are not those of the table above."
    details = "".join(cutoffs_table(rows, task) for task in tasks)
    return (
        f'<h2>Among the whole catalogue</h2><p class="lead">{escape(lead)}</p>{results_table(rows, tasks)}{details}'
        f'<p class="footnote">{escape(_footnote(records.evaluation, tasks))}</p>'
    )


def cutoffs_table(rows: list[ResultRow], task: str) -> str:
    """hit and ndcg of a task at every cut-off, a row a method; new transitions apart where they were measured.

    Args:
      rows: methods, top to bottom.
      task: its name.

    Returns:
      HTML text; the best value of each column is marked.
    """
    shown = [row for row in rows if row.value(task, "hit@10") is not None]
    if not shown:
        return ""
    names = [f"{metric}@{k}" for metric in _METRICS for k in _CUTOFFS]
    columns = [marked_column(shown, task, name) for name in names]
    groups, heads = f'<th class="group" colspan="{len(names)}">all rows</th>', names
    count = next((found["rows"] for row in shown if (found := row.values[task].get(_NEW))), 0)
    if count:
        apart = [ResultRow(row.name, row.kind, {task: row.values[task].get(_NEW) or {}}) for row in shown]
        columns += [marked_column(apart, task, name) for name in names]
        groups += f'<th class="group" colspan="{len(names)}">{int(count):,} rows of new transitions</th>'
        heads = heads * 2
    body = "".join(
        f'<tr class="{"ours" if row.kind == "run" else ""}"><td>{escape(row.name)}</td>'
        + "".join(column[number] for column in columns)
        + "</tr>"
        for number, row in enumerate(shown)
    )
    return (
        f'<div class="card scroll"><h3>{escape(task_label(task))}</h3><table><thead><tr><th class="group"></th>{groups}'
        f"</tr><tr><th>Method</th>{''.join(f'<th>{head}</th>' for head in heads)}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def beam_notes(evaluation: Mapping[str, Any], tasks: list[str]) -> list[str]:
    """A sentence for each task that a beam search ranked: its width, and how often it lost the right item.

    Args:
      evaluation: content of an ``eval.json``, or its part of the whole catalogue.
      tasks: names of its tasks.

    Example:
      >>> beam_notes({"rec": {"beams": 20, "off_beam": 0.75}}, ["rec"])
      ['Recommendation: the search kept 20 items a row, and the right one was not among them in 75.0% of the rows']
    """
    return [
        f"{task_label(task)}: the search kept {entry['beams']} {'identifiers' if 'tied' in entry else 'items'} a row, "
        f"and the right one was not among them in {entry['off_beam']:.1%} of the rows"
        for task in tasks
        if "off_beam" in (entry := evaluation.get(task, {}))
    ]


def _footnote(evaluation: Mapping[str, Any], tasks: list[str]) -> str:
    notes = [f"{note}." for note in beam_notes(evaluation, tasks)]
    notes.append(
        "Items of the user's history are candidates, too. New transitions: rows whose right item never came directly "
        "after the last item of the history in any training row, so that remembering pairs does not help. Methods "
        "without beams score every item."
    )
    return " ".join(notes)
