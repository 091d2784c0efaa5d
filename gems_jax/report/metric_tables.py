"""Tables of a report beside the comparison of methods: every metric of this run, and what separates it from others."""

from collections.abc import Mapping
from html import escape
from typing import Any

from gems_jax.report.results import ResultRow, task_label

_METRICS = ("hit", "ndcg", "mrr", "map")
_CUTOFFS = (5, 10, 20)
# Two numbers that read the same in a table.
_SAME = 5e-4


def metrics_table(own: ResultRow, task: str) -> str:
    """All metrics of a task, a row a metric and a column a cut-off, with their intervals.

    Args:
      own: this run.
      task: its name.

    Returns:
      HTML text, empty where less than two cut-offs were measured. The released code's variants have rows where they
      differ.
    """
    cutoffs = [k for k in _CUTOFFS if own.value(task, f"hit@{k}") is not None]
    names = [name for name in _METRICS if any(own.value(task, f"{name}@{k}") is not None for k in cutoffs)]
    if len(cutoffs) < 2:
        return ""
    names += [f"released_{name}" for name in _METRICS if _differs(own, task, name, cutoffs)]
    heads = "".join(f"<th>@{k}</th>" for k in cutoffs)
    body = "".join(
        f"<tr><td>{escape(name.replace('_', ' '))}</td>"
        + "".join(_number(own.value(task, f"{name}@{k}"), own.interval(task, f"{name}@{k}")) for k in cutoffs)
        + "</tr>"
        for name in names
    )
    return (
        f'<div class="card scroll"><h3>{escape(task_label(task))}: all metrics of this run</h3>'
        f"<table><thead><tr><th>Metric</th>{heads}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def paired_table(paired: Mapping[str, Any]) -> str:
    """This run against each other one on the same users: difference, interval and p-value.

    Args:
      paired: run to task to metric to the outcome, as of `gems_jax.evaluation.compare_runs.compare_runs`.

    Returns:
      HTML text, empty where nothing was compared.
    """
    columns = list(dict.fromkeys((task, name) for run in paired.values() for task in run for name in run[task]))
    if not columns:
        return ""
    heads = "".join(f"<th>{escape(task_label(task))}<br>{escape(name)}</th>" for task, name in columns)
    body = "".join(
        f"<tr><td>{escape(name)}</td>"
        + "".join(_difference(run.get(task, {}).get(metric)) for task, metric in columns)
        + "</tr>"
        for name, run in paired.items()
    )
    return (
        '<div class="card scroll"><h3>This run less another, on the same users</h3>'
        f"<table><thead><tr><th>Compared with</th>{heads}</tr></thead><tbody>{body}</tbody></table></div>"
        '<p class="footnote">Mean difference, its 95 % interval by bootstrap over users, and the p-value of a '
        "permutation test over users; green: this run is better by more than chance would give at p = 0.05, red: "
        "worse. Many comparisons make some of them look real.</p>"
    )


def _differs(own: ResultRow, task: str, name: str, cutoffs: list[int]) -> bool:
    pairs = [(own.value(task, f"{name}@{k}"), own.value(task, f"released_{name}@{k}")) for k in cutoffs]
    return any(a is not None and b is not None and abs(a - b) >= _SAME for a, b in pairs)


def _number(value: float | None, interval: tuple[float, float] | None) -> str:
    if value is None:
        return '<td class="none">–</td>'
    note = f'<span class="ci">{interval[0]:.3f} to {interval[1]:.3f}</span>' if interval else ""
    return f"<td><b>{value:.3f}</b>{note}</td>"


def _difference(comparison: Mapping[str, float] | None) -> str:
    if not comparison:
        return '<td class="none">–</td>'
    mark = ""
    if comparison["p_value"] < 0.05:
        mark = ' class="better"' if comparison["difference"] > 0 else ' class="worse"'
    p = f"p = {comparison['p_value']:.3f}" if comparison["p_value"] >= 0.001 else "p &lt; 0.001"
    return (
        f"<td{mark}><b>{comparison['difference']:+.3f}</b>"
        f'<span class="ci">{comparison["low"]:+.3f} to {comparison["high"]:+.3f}, {p}</span></td>'
    )
