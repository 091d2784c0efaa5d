"""The report as one HTML page that asks for nothing from outside."""

from html import escape
from typing import Any

from gems_jax.report import charts, run_pictures
from gems_jax.report.ability_table import ability_table, continuation_cards
from gems_jax.report.catalogue_tables import among, beam_notes, catalogue_section
from gems_jax.report.general_table import general_table
from gems_jax.report.metric_tables import metrics_table, paired_table
from gems_jax.report.records import RunRecords
from gems_jax.report.results import ResultRow, methods, notes, results_table, task_label
from gems_jax.report.style import CSS

_DEFINITIONS = (
    "hit: the right item is among the first k. ndcg: its gain falls with the logarithm of its place. mrr: one over "
    "its place. map: mean precision at the right items. The released code divides ndcg and map by what was found "
    "instead of what there is; those variants are shown where they differ from these."
)


def page(records: RunRecords, title: str) -> str:
    """Puts a report together.

    Args:
      records: what the run has recorded.
      title: name of the run, shown beside the heading.

    Returns:
      HTML text.
    """
    tasks, rows = records.tasks(), methods(records)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)} · report</title><style>{CSS}</style></head><body><main>"
        f"{_header(records, title)}{_tiles(records, rows, tasks)}{_results(records, rows, tasks)}"
        f"{_drift(records, rows)}{_training(records)}{_examples(records, tasks)}</main></body></html>\n"
    )


def _header(records: RunRecords, title: str) -> str:
    facts = [title]
    if records.lines:
        facts.append(f"{records.lines[-1]['step']:,} steps")
    _, rates = records.series("tokens_per_second")
    if len(rates):
        facts.append(f"{float(sorted(rates)[len(rates) // 2]):,.0f} tokens a second")
    spans = "".join(f"<span>{escape(fact)}</span>" for fact in facts)
    return (
        "<h1>One model that searches and recommends</h1>"
        '<p class="lead">A language model tuned for both tasks at once with gradient multi-subspace tuning: '
        "how well it ranks items, how much general language it has kept, and how the training went.</p>"
        f'<p class="facts">{spans}</p>'
    )


def _tiles(records: RunRecords, rows: list[ResultRow], tasks: list[str]) -> str:
    own = next((row for row in rows if row.kind == "run"), None)
    if own is None:
        return ""
    tiles = []
    for task, colour in zip(tasks, charts.TASK_COLOURS, strict=False):
        value = own.value(task, "hit@10")
        if value is not None:
            tiles.append(_tile(colour, task_label(task), f"{value:.1%}", _hit_note(own, rows, task)))
    forgetting = own.forgetting()
    if forgetting is not None:
        before, after = own.value("general", "base_loss"), own.value("general", "loss_full")
        note = f"loss on general text: {before:.2f} before tuning, {after:.2f} after"
        kept = own.value("general", "top1_agreement")
        note += "" if kept is None else f"; the first choice is the base model's for {kept:.1%} of tokens"
        tiles.append(_tile(charts.GOOD, "General language", f"{forgetting:+.2f}", note))
    _, leaks = records.series("null_space/leak")
    if len(leaks):
        note = "largest share of any update in directions that general text uses"
        tiles.append(_tile("#7a4fb0", "Null-space leak", f"{leaks.max():.0e}", note))
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _hit_note(own: ResultRow, rows: list[ResultRow], task: str) -> str:
    size = own.value(task, "candidates")
    note = "of the right items stand among the first ten" + (f" of {int(size):,}" if size else "")
    rivals = [
        (value, row.name) for row in rows if row.kind == "baseline" and (value := row.value(task, "hit@10")) is not None
    ]
    if rivals:
        value, name = max(rivals)
        note += f'; the best baseline, "{name}", finds {value:.1%}'
    return note


def _tile(colour: str, what: str, value: str, note: str) -> str:
    return (
        f'<div class="tile" style="--accent:{colour}"><span class="what">{escape(what)}</span>'
        f'<b>{escape(value)}</b><p class="note">{escape(note)}</p></div>'
    )


def _results(records: RunRecords, rows: list[ResultRow], tasks: list[str]) -> str:
    if not rows:
        return '<h2>Results</h2><p class="empty">This run has not been evaluated yet.</p>'
    shown = [task for task in tasks if any(row.values.get(task) for row in rows)]
    sizes = ", ".join(
        f"{int(entry['rows']):,} {task_label(task).lower()} rows"
        for task in shown
        if "rows" in (entry := records.evaluation.get(task, {}))
    )
    footnote = (
        f"{f'Held-out rows: {sizes}. ' if sizes else ''}Green marks the best of a column. hit@10: the right "
        "item is among the first ten; ndcg@10 counts it less the lower it stands. Forgetting: how much worse "
        "the model has become at general text over all tokens, items among them, against the base model without "
        "items. Top-1 kept: tokens of general text for which the most probable one is "
        "still the base model's. Ranges are 95 % confidence intervals over users."
    )
    cards = "".join(run_pictures.result_pictures(rows, shown))
    own = next((row for row in rows if row.kind == "run"), None)
    details = "".join(metrics_table(own, task) for task in shown) if own else ""
    if details:
        details = f'<div class="grid">{details}</div><p class="footnote">{_DEFINITIONS}</p>'
    said = [*beam_notes(records.evaluation, shown), *notes(records)]
    remarks = "".join(f'<p class="footnote">{escape(note)}.</p>' for note in said)
    what = among(records.evaluation, shown)
    lead = f'<p class="lead">{escape(f"The right item ranked among {what}.")}</p>' if what else ""
    return (
        f'<h2>Results</h2>{lead}{results_table(rows, shown)}<p class="footnote">{footnote}</p>{remarks}'
        f'{paired_table(records.evaluation.get("paired", {}))}<div class="grid">{cards}</div>{details}'
        f"{_catalogue(records)}"
    )


def _catalogue(records: RunRecords) -> str:
    whole = records.of_catalogue()
    if whole is None:
        return ""
    rows, tasks = methods(whole), whole.tasks()
    remarks = "".join(f'<p class="footnote">{escape(note)}.</p>' for note in notes(whole))
    return catalogue_section(whole, rows, tasks) + remarks + paired_table(whole.evaluation.get("paired", {}))


def _drift(records: RunRecords, rows: list[ResultRow]) -> str:
    cards = "".join([*run_pictures.drift_pictures(rows), *run_pictures.shift_pictures(rows)])
    if not cards:
        return ""
    lead = "Tuning for a task usually costs what a model knew before. Here is how much."
    tables = general_table(rows) + ability_table(rows)
    texts = continuation_cards(records.evaluation.get("continuations") or {})
    return f'<h2>What was forgotten</h2><p class="lead">{lead}</p>{tables}<div class="grid">{cards}</div>{texts}'


def _training(records: RunRecords) -> str:
    cards = "".join(run_pictures.training_pictures(records))
    return f'<h2>Training</h2><div class="grid">{cards}</div>' if cards else ""


def _examples(records: RunRecords, tasks: list[str]) -> str:
    examples = records.evaluation.get("examples", [])
    if not examples:
        return ""
    cards = "".join(_example(example, tasks) for example in examples)
    lead = (
        "Held-out rows picked at random: what somebody did, and what the model puts first with its score, "
        "the mean log-probability; what was really chosen is green."
    )
    return f'<h2>Examples</h2><p class="lead">{lead}</p><div class="grid">{cards}</div>'


def _example(example: dict[str, Any], tasks: list[str]) -> str:
    task, top = str(example.get("task", "")), example.get("top", [])
    index = tasks.index(task) if task in tasks else 0
    hit_rank = next((rank for rank, item in enumerate(top, 1) if item.get("hit")), None)
    verdict = f"right item at place {hit_rank}" if hit_rank else f"right item not among the first {len(top)}"
    history = [str(item) for item in example.get("history", [])]
    left_out = f"<li>… {len(history) - 5} earlier</li>" if len(history) > 5 else ""
    colour = charts.TASK_COLOURS[index % len(charts.TASK_COLOURS)]
    parts = [
        f'<article class="card example" style="--accent:{colour}">'
        f'<span class="badge">{escape(task_label(task))}</span><span class="verdict">{escape(verdict)}</span>'
    ]
    if history:
        items = "".join(f"<li>{escape(item)}</li>" for item in history[-5:])
        parts.append(f'<p class="label">Before</p><ul class="history">{left_out}{items}</ul>')
    if example.get("query"):
        parts.append(f'<p class="label">Typed</p><span class="query">{escape(str(example["query"]))}</span>')
    parts.append(f'<p class="label">The model\'s first {len(top)}</p><ol class="top">')
    for item in top:
        mark = ' class="hit"' if item.get("hit") else ""
        score = item.get("score")
        shown = f'<span class="score">{score:.2f}</span>' if isinstance(score, int | float) else ""
        parts.append(f'<li{mark}><span class="title">{escape(str(item.get("title", "")))}</span>{shown}</li>')
    parts.append("</ol>")
    if not hit_rank and example.get("target"):
        parts.append(f'<p class="missed">Chosen: {escape(str(example["target"]))}</p>')
    return "".join(parts) + "</article>"
