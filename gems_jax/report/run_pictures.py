"""The pictures of a report with their captions, from what a run has recorded."""

import base64
from collections.abc import Iterator
from html import escape
from typing import Literal

import numpy as np

from gems_jax.report import charts
from gems_jax.report.heat_map import heat_map
from gems_jax.report.records import RunRecords
from gems_jax.report.results import ResultRow, task_label

CONFLICT_COLOUR = "#7a4fb0"
LEAK_BOUND = 1e-5  # what an emitted float32 update may leak into the protected directions


def figure(title: str, svg: str, caption: str) -> str:
    """A card with a picture embedded in the page, its title and one sentence on what it shows."""
    data = base64.b64encode(svg.encode()).decode()
    return (
        f'<figure class="card"><h3>{escape(title)}</h3>'
        f'<img alt="{escape(title)}" src="data:image/svg+xml;base64,{data}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def result_pictures(rows: list[ResultRow], tasks: list[str]) -> Iterator[str]:
    """Hit rate of every method, one picture a task."""
    for task, colour in zip(tasks, charts.TASK_COLOURS, strict=False):
        measured = [
            (row.name, value, row.interval(task, "hit@10"))
            for row in rows
            if (value := row.value(task, "hit@10")) is not None
        ]
        if measured:
            svg = charts.bars_chart(measured, _own_name(rows), colour, "hit@10")
            label = task_label(task)
            yield figure(
                f"{label}: hit@10",
                svg,
                f"How often the right item is among the first ten ({label.lower()}); "
                "the thin lines are 95 % confidence intervals over users.",
            )


def drift_pictures(rows: list[ResultRow]) -> Iterator[str]:
    """Loss on general text before and after tuning: with the item tokens, then without them."""
    vocabularies: tuple[tuple[Literal["full", "base"], str, str, str], ...] = (
        ("full", "_full", "Loss on general text", "over all tokens after it, where items take probability too"),
        ("base", "", "The same, without the item tokens", "over the base model's own vocabulary"),
    )
    for vocabulary, suffix, title, what in vocabularies:
        moved = [(row.name, row.value("general", "base_loss"), row.value("general", "loss" + suffix)) for row in rows]
        known = [(name, old, new) for name, old, new in moved if old is not None and new is not None]
        if known:
            svg = charts.drift_chart(known, _own_name(rows), "loss per token (lower is better)")
            own = next((row for row in rows if row.kind == "run" and row.forgetting(vocabulary) is not None), None)
            moved_by = f" (this run: {own.forgetting(vocabulary):+.3f})" if own else ""
            yield figure(
                title,
                svg,
                f"Loss on text that has nothing to do with items, before and after tuning, {what}{moved_by}: "
                "a short line means little was forgotten.",
            )


def shift_pictures(rows: list[ResultRow]) -> Iterator[str]:
    """How far the layers' outputs have moved on general text: of this run by layer, and of all runs together."""
    own = next((row for row in rows if row.kind == "run"), None)
    shifts = own.shifts() if own else {}
    if shifts:
        largest = max(shifts, key=lambda path: float(shifts[path].max(initial=0.0)))
        yield figure(
            "How far each layer's output has moved",
            heat_map([(_kernel_label(path), values) for path, values in shifts.items()], "layer"),
            "|x ΔW| / |x W| on general text, x what the base model gives each kernel: 0 is an output that has not "
            f"moved. The largest, {shifts[largest].max():.1%}, is in {_kernel_label(largest)}.",
        )
    means = [(row.name, _root_mean_square(shifts_of_row), None) for row in rows if (shifts_of_row := row.shifts())]
    if len(means) > 1:
        yield figure(
            "Output shift of each run",
            charts.bars_chart(means, _own_name(rows), charts.GOOD, "root mean square of |x ΔW| / |x W|"),
            "The same, over all kernels and layers of each run: shorter means that less has moved under general text.",
        )


def _kernel_label(path: str) -> str:
    return " ".join(part for part in path.split("/") if part not in ("block", "kernel")).replace("_attention", " attn")


def _root_mean_square(shifts: dict[str, np.ndarray]) -> float:
    return float(np.sqrt(np.mean(np.concatenate(list(shifts.values())) ** 2)))


def training_pictures(records: RunRecords) -> Iterator[str]:
    """Losses, gates, conflict, leak and validation over the steps; what was not recorded is left out."""
    losses = _by_task(records, "loss/")
    if losses:
        ends = ", ".join(
            f"{label.lower()} {values[: _edge(values)].mean():.2f} → {values[-_edge(values) :].mean():.2f}"
            for label, (_, values) in losses.items()
        )
        yield figure(
            "Loss of each task",
            charts.lines_chart(losses, "loss per target token"),
            f"Training loss of the two kinds of examples ({ends})."
            if len(losses) == 2
            else f"Training loss of each task ({ends}).",
        )
    gates = _by_task(records, "gate/")
    if gates:
        means = ", ".join(f"{label.lower()} {values.mean():.2f}" for label, (_, values) in gates.items())
        yield figure(
            "Gates",
            charts.shares_chart(gates, "share of the update"),
            f"How the gate divides each update between the task subspaces (mean: {means}).",
        )
    yield from _conflict_picture(records)
    yield from _leak_picture(records)
    norms = _by_task(records, "grad_norm/")
    if norms:
        yield figure(
            "Gradient norms",
            charts.lines_chart(norms, "gradient norm"),
            "Length of each task's gradient; the gate weighs the tasks by it among others.",
        )
    yield from _validation_pictures(records)


def _conflict_picture(records: RunRecords) -> Iterator[str]:
    series = {}
    for key in records.keys("conflict/"):
        steps, values = records.series(key)
        pair = key.removeprefix("conflict/").split("-", 1)
        if len(values):
            series[" and ".join(task_label(task).lower() for task in pair)] = (steps, values)
    if not series:
        return
    together = np.concatenate([values for _, values in series.values()])
    yield figure(
        "Do the tasks pull apart?",
        charts.lines_chart(
            series, "cosine of gradients", colours=(CONFLICT_COLOUR, *charts.TASK_COLOURS), zero_line=True
        ),
        "Cosine between the tasks' gradients: 1 is the same direction, below 0 they conflict, "
        f"which happens in {(together < 0).mean():.0%} of the recorded steps.",
    )


def _leak_picture(records: RunRecords) -> Iterator[str]:
    steps, values = records.series("null_space/leak")
    if len(values):
        largest = float(values.max())
        verdict = "within" if largest <= LEAK_BOUND else "ABOVE"
        yield figure(
            "Leak into general directions",
            charts.leak_chart(steps, values, LEAK_BOUND),
            "Share of each update that points into the directions general text uses; "
            f"the largest seen is {largest:.1e}, {verdict} what float32 rounding allows.",
        )


def _validation_pictures(records: RunRecords) -> Iterator[str]:
    ranked = {}
    for key in records.keys("eval/"):
        task, metric = key.removeprefix("eval/").split("/", 1)
        if metric == "hit@10":
            ranked[task_label(task)] = records.series(key)
    ranked = {label: series for label, series in ranked.items() if len(series[0]) > 1}
    if ranked:
        yield figure(
            "Validation during training",
            charts.lines_chart(ranked, "hit@10"),
            "Share of validation rows with the right item among the first ten, as training goes on.",
        )
    steps, values = records.series("eval/general/loss")
    if len(values) > 1:
        yield figure(
            "General text during training",
            charts.lines_chart({"general text": (steps, values)}, "loss per token", colours=(charts.GOOD,)),
            "Loss on held-out general text, item tokens left out: a flat line means nothing is forgotten.",
        )


def _by_task(records: RunRecords, prefix: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    series_of = {task_label(key.removeprefix(prefix)): records.series(key) for key in records.keys(prefix)}
    return {label: series for label, series in series_of.items() if len(series[0])}


def _own_name(rows: list[ResultRow]) -> str:
    return next((row.name for row in rows if row.kind == "run"), "")


def _edge(values: np.ndarray) -> int:
    return max(1, len(values) // 20)
