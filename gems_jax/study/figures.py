"""Draws the pictures that a study's results give, with what they say."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from gems_jax.config.text_task import TEXT_TASK
from gems_jax.report.results import task_label
from gems_jax.study.frontier import frontier, points_of
from gems_jax.study.old_names import FORGETTING
from gems_jax.study.pictures import Lines, panels, plane, steps
from gems_jax.study.tables import rates_of, reference_of

_FORGETTING = f"general/{FORGETTING}"


class Picture(NamedTuple):
    """A picture of the page: file name without ending, heading, what it shows, SVG text."""

    name: str
    heading: str
    caption: str
    svg: str


def figures(summary: Mapping[str, Any], tasks: list[str]) -> Iterator[Picture]:
    """The pictures that there are results for.

    Args:
      summary: content of ``study.json``.
      tasks: names.
    """
    done = [method for method in summary["methods"] if "numbers" in method]
    yield from _frontier(summary)
    if len(tasks) > 1:
        yield _plane(done, tasks, summary["study"].get("budget"))
    main = [method for method in done if method["name"] in summary["study"]["main"]]
    trained = list(dict.fromkeys([*tasks, TEXT_TASK]))  # which some methods have as a task
    yield from _conflicts(main, trained)
    yield from _gates(done, trained)
    yield from _captured(done, trained)
    yield from _spectra(main, tasks, reference_of(summary)[0])


def _frontier(summary: Mapping[str, Any]) -> Iterator[Picture]:
    """Of the main methods, or of all where none of these is finished: more lines than that could not be told apart."""
    curves = {m["name"]: (m["label"], frontier(points_of(summary, m["name"]))) for m in summary["methods"]}
    curves = {name: curve for name, curve in curves.items() if curve[1]}
    shown = {name: curve for name, curve in curves.items() if name in summary["study"]["main"]} or curves
    lines = {label: ([p.forgetting for p in points], [p.level for p in points]) for label, points in shown.values()}
    if lines:
        yield Picture(
            "frontier", "Ranking for forgetting",
            "Each point is a run of the first seed that ranks better than all of its method that forget as little; "
            f"ranking is validation {summary['study']['metric']}, the mean over tasks. Up and left is better.",
            steps(lines, "forgetting, nats a token over all tokens", f"validation {summary['study']['metric']}"),
        )  # fmt: skip


def _plane(done: list[dict[str, Any]], tasks: list[str], budget: float | None) -> Picture:
    points = []
    for method in done:
        entries, within = [(method["label"], method)], method.get("within_budget")
        if within and rates_of(within) != rates_of(method):
            entries.append((f"{method['label']} within {budget:g}", within))
        for label, entry in entries:
            x, y = (entry["numbers"][f"test/{task}/ndcg@10"]["mean"] for task in tasks[:2])
            points.append((label, x, y, entry["numbers"][_FORGETTING]["mean"]))
    labels = tuple(f"{task_label(task)}, ndcg@10" for task in tasks[:2])
    caption = "Up and right is better, and light is better: the colour is forgetting, nats a token."
    return Picture(
        "plane", "The trade-off", caption,
        plane(points, (labels[0], labels[1]), "forgetting"),
    )  # fmt: skip


def _curve(method: Mapping[str, Any], key: str) -> tuple[list[float], list[float]] | None:
    curve = method["curves"].get(key)
    return (curve["step"], curve["value"]) if curve else None


def _conflicts(main: list[dict[str, Any]], tasks: list[str]) -> Iterator[Picture]:
    groups: dict[str, Lines] = {}
    for i, first in enumerate(tasks):
        for second in tasks[i + 1 :]:
            cosines = {m["label"]: _curve(m, f"conflict/{first}-{second}") for m in main}
            lines = {label: curve for label, curve in cosines.items() if curve}
            if lines:
                groups[f"{task_label(first)} and {task_label(second).lower()}"] = lines
    if groups:
        yield Picture(
            "conflict", "Do the tasks' gradients conflict?",
            "Cosine between the tasks' gradients over time (means of neighbouring steps, first seed). Below 0, a step "
            "along one gradient harms the other task.",
            panels(groups, "step", "cosine", zero_line=True),
        )  # fmt: skip


def _by_task(method: Mapping[str, Any], prefix: str, names: list[str]) -> dict[str, tuple[list[float], list[float]]]:
    by_label = {("Shared" if n == "shared" else task_label(n)): _curve(method, prefix + n) for n in names}
    return {label: curve for label, curve in by_label.items() if curve}


def _gates(done: list[dict[str, Any]], tasks: list[str]) -> Iterator[Picture]:
    wanted = [m for m in done if m["name"] in ("gems", "gems-learned-gates", "gems-replay", "gems-distill")]
    groups: dict[str, Lines] = {m["label"]: lines for m in wanted if (lines := _by_task(m, "gate/", tasks))}
    if groups:
        yield Picture(
            "gates", "Gates",
            "The share of each task's own subspace in the update (first seed).",
            panels(groups, "step", "gate"),
        )  # fmt: skip


def _captured(done: list[dict[str, Any]], tasks: list[str]) -> Iterator[Picture]:
    wanted = [m for m in done if m["name"] in ("galore", "gems", "gems-no-null-space")]
    groups: dict[str, Lines] = {}
    for method in wanted:
        lines = {
            label: curve for label, curve in _by_task(method, "captured/", ["shared", *tasks]).items() if any(curve[1])
        }
        if lines:
            groups[method["label"]] = lines
    if groups:
        yield Picture(
            "captured", "Energy inside the subspaces",
            "Share of the energy of a step's gradients that is inside their subspaces, over time (first seed). It "
            "jumps at every refresh, when the bases are made anew.",
            panels(groups, "step", "share of energy"),
        )  # fmt: skip


def _spectra(main: list[dict[str, Any]], tasks: list[str], reference_name: str) -> Iterator[Picture]:
    reference = next((m for m in main if m["name"] == reference_name and m.get("spectra")), None)
    shown = [m for m in main if m.get("spectra") and m["name"] in (reference_name, "gems")]
    groups: dict[str, Lines] = {}
    for title, spectra in ([("Before tuning", (reference or shown[0])["spectra"]["before"])] if shown else []) + [
        (f"After {m['label']}", m["spectra"]["after"]) for m in shown
    ]:
        groups[title] = {
            ("Shared" if name == "shared" else task_label(name)): (spectra["share"], spectra[name])
            for name in ("shared", *tasks)
            if name in spectra
        }
    if groups:
        yield Picture(
            "spectra", "Spectra of the gradients",
            "Energy of one batch's gradients in their leading singular directions, mean over kernels: how low-rank "
            "they are.",
            panels(groups, "directions, as a share of the smaller side", "share of energy", share_axis=True),
        )  # fmt: skip
