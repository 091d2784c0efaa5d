"""The tables of a study's page, as Markdown."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from gems_jax.report.results import task_label
from gems_jax.study.config import StudyConfig
from gems_jax.study.frontier import AREA_TO, LIMITS, area, best_within, points_of
from gems_jax.study.methods import REFERENCE, Rates, study_methods
from gems_jax.study.old_names import FORGETTING
from gems_jax.study.trials import spelled

_FORGETTING, _FACTS = f"general/{FORGETTING}", "general/facts_kept"

_SHOWN = ("ndcg@10", "hit@10")
_RANKERS = {"popularity": "popularity", "co-occurrence": "item co-occurrence", "BM25": "BM25"}
_LEVEL = 0.05
_NONE = "–"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are numbers.

    Example:
      >>> print(markdown_table(["a", "b"], [["x", "1"]]))
      | a | b |
      |---|--:|
      | x | 1 |
    """
    lines = [head, *rows]
    text = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
    return "\n".join([text[0], "|---" + "|--:" * (len(head) - 1) + "|", *text[1:]])


def summary_table(summary: Mapping[str, Any], tasks: list[str]) -> str:
    """Rankers without a model, then the methods: metrics of each task, drift, time, memory."""
    head = ["", "learning rate", "seeds", *(f"{task_label(t)} {m}" for t in tasks for m in _SHOWN)]
    head += ["forgetting", "same choice", "seconds a run", "optimiser, MiB"]
    ranked, rows = [], []
    for name, measured in summary["base"].get("rankers", {}).items():
        if measured:
            cells = [f"{measured[t][m]:.3f}" if m in measured.get(t, {}) else _NONE for t in tasks for m in _SHOWN]
            ranked.append([_RANKERS.get(name, name), _NONE, _NONE, *cells])
    finished = [method for method in summary["methods"] if "numbers" in method]
    # Earlier studies did not ask, and a small base model knows too little.
    asked = any(_FACTS in method["numbers"] for method in finished)
    head[-2:-2] = ["facts kept"] * asked
    # Times are comparable on one machine alone: that of the most methods.
    usual = statistics.mode(method.get("timed_on") for method in finished)
    for method in finished:
        numbers, cells = method["numbers"], _test_cells(method, tasks)
        name = f"**{method['label']}**" if method["name"] == "gems" else method["label"]
        seconds = _mean(numbers, "seconds", 1.0, ".0f") if method.get("timed_on") == usual else _NONE
        rows.append([
            name, spelled(rates_of(method)), str(len(method["seeds"])), *cells,
            mean_and_spread(numbers.get(_FORGETTING)), mean_and_spread(numbers.get("general/top1_agreement")),
            *[mean_and_spread(numbers.get(_FACTS))] * asked, seconds, _mean(numbers, "optimiser_bytes", 2**20, ".1f"),
        ])  # fmt: skip
    none = [[*row, *[_NONE] * (len(head) - len(row))] for row in ranked]
    return markdown_table(head, [*none, *rows])


def budget_table(summary: Mapping[str, Any], tasks: list[str]) -> str:
    """The methods within the study's budget of forgetting: metrics of each task and drift, beside the reference."""
    head = ["", "learning rate", "seeds", *(f"{task_label(t)} {m}" for t in tasks for m in _SHOWN)]
    head += ["forgetting", "of the reference's", "same choice"]
    name, _ = reference_of(summary)
    reference = next(method for method in summary["methods"] if method["name"] == name)
    whole = reference["numbers"][_FORGETTING]["mean"]
    rows = []
    for method in summary["methods"]:
        entry = method if method is reference else method.get("within_budget")
        if entry is None:
            continue
        numbers = entry["numbers"]
        rows.append([
            method["label"], spelled(rates_of(entry)), str(len(entry["seeds"])), *_test_cells(entry, tasks),
            mean_and_spread(numbers.get(_FORGETTING)), f"{numbers[_FORGETTING]['mean'] / whole:.2f}",
            mean_and_spread(numbers.get("general/top1_agreement")),
        ])  # fmt: skip
    return markdown_table(head, rows)


def reference_of(summary: Mapping[str, Any]) -> tuple[str, str]:
    """Name and label of the method that others are compared with.

    Example:
      >>> reference_of({"study": {"reference": "gems"}})
      ('gems', 'GEMS')
    """
    name = summary["study"].get("reference", REFERENCE)
    return name, study_methods()[name].label


def _test_cells(entry: Mapping[str, Any], tasks: list[str]) -> list[str]:
    """Each task's metrics on test rows, marked where they differ from the reference's."""
    numbers, tests = entry["numbers"], entry.get("against", {})
    keys = [f"{task}/{metric}" for task in tasks for metric in _SHOWN]
    return [mean_and_spread(numbers.get(f"test/{key}")) + mark(tests.get(key)) for key in keys]


def mean_and_spread(number: Mapping[str, float | None] | None) -> str:
    """A mean with its standard deviation, where there is one.

    Example:
      >>> mean_and_spread({"mean": 0.2512, "sd": 0.0031}), mean_and_spread({"mean": 0.25, "sd": None})
      ('0.251 ± 0.003', '0.250')
    """
    if number is None or number["mean"] is None:
        return _NONE
    text = f"{number['mean']:.3f}"
    return text if number["sd"] is None else f"{text} ± {number['sd']:.3f}"


def mark(test: Mapping[str, Any] | None) -> str:
    """Whether a difference is more than chance, and which way.

    Example:
      >>> mark({"difference": 0.02, "p_corrected": 0.001}), mark({"difference": -0.02, "p_corrected": 0.3})
      (' ▲', '')
    """
    if test is None or test["p_corrected"] >= _LEVEL:
        return ""
    return " ▲" if test["difference"] > 0 else " ▼"


def comparison_table(summary: Mapping[str, Any], tasks: list[str]) -> str:
    """Differences from the reference, with intervals and p-values."""
    head = ["", "seeds", *(f"{task_label(t)} {m}" for t in tasks for m in _SHOWN)]
    rows = []
    for method in summary["methods"]:
        tests = method.get("against")
        if not tests:
            continue
        cells = []
        for key in (f"{task}/{metric}" for task in tasks for metric in _SHOWN):
            test = tests[key]
            cells.append(
                f"{test['difference']:+.4f} [{test['low']:+.4f}, {test['high']:+.4f}], p {_p(test['p_corrected'])}"
            )
        rows.append([method["label"], str(next(iter(tests.values()))["seeds"]), *cells])
    return markdown_table(head, rows) if rows else "No method has a seed in common with the reference yet."


def grid_table(summary: Mapping[str, Any], tasks: list[str]) -> str:
    """Validation results and general loss of all learning rates."""
    study = summary["study"]
    tried = StudyConfig(grid=tuple(study["grid"]), item_grid=tuple(study.get("item_grid", ())))

    def column(rates: Rates) -> str:
        """The learning rates, a method's own in one column with the others'."""
        items = "" if rates[1] is None else f", items {rates[1]:g}"
        return spelled(rates) if tried.grid else f"its own{items}"

    row_of = {(row["method"], column(rates_of(row)), row["seed"]): row for row in summary["rows"]}
    columns = [column(rates) for rates in tried.rates(tried.reference)]
    rows = []
    for method in summary["methods"]:
        cells = []
        for rates in columns:
            row = row_of.get((method["name"], rates, 0))
            chosen = method["learning_rate"] is not None and rates == column(rates_of(method))
            cells.append(_grid_cell(row, tasks, study["metric"], chosen))
        rows.append([method["label"], *cells])
    return markdown_table(["", *columns], rows)


def frontier_table(summary: Mapping[str, Any], tasks: list[str]) -> str:
    """The best validation result of each method within each limit on forgetting, and the area under them."""
    metric, known = summary["study"]["metric"], study_methods()
    rows = []
    for method in summary["methods"]:
        if known[method["name"]].strength_of in summary["study"]["methods"]:
            continue  # a strength of another row's method
        points = points_of(summary, method["name"])
        cells = []
        for limit in (*LIMITS, float("inf")):
            best = best_within(points, limit)
            tested = summary.get("at_equal_forgetting", {}).get(f"{limit:g}", {}).get(method["name"], {})
            cells.append(_NONE if best is None else _levels(best.row, tasks, metric, tested.get("against", {})))
        rows.append([method["label"], f"{area(points):.3f}", *cells])
    head = ["", f"area to +{AREA_TO:g}", *(f"at most +{limit:g}" for limit in LIMITS), "any"]
    return markdown_table(head, rows)


def _levels(row: Mapping[str, Any], tasks: list[str], metric: str, tests: Mapping[str, Any] | None = None) -> str:
    marks = {task: mark((tests or {}).get(f"{task}/{_SHOWN[0]}")) for task in tasks}
    return " / ".join(f"{row['valid'][task][metric]:.3f}{marks[task]}" for task in tasks)


def rates_of(of: Mapping[str, Any]) -> Rates:
    """A row's or a method's learning rates of kernels and item rows."""
    return of["learning_rate"], of.get("item_learning_rate")


def _grid_cell(row: Mapping[str, Any] | None, tasks: list[str], metric: str, best: bool) -> str:
    if row is None:
        return _NONE
    if "valid" not in row:
        return "diverged"
    text = _levels(row, tasks, metric)
    return f"{f'**{text}**' if best else text}, {row['general'][FORGETTING]:+.2f}"


def _mean(numbers: Mapping[str, Any], key: str, unit: float, form: str) -> str:
    return f"{numbers[key]['mean'] / unit:{form}}" if key in numbers else _NONE


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"
