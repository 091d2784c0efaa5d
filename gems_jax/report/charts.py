"""Pictures of a report: each function draws one and gives it as SVG text."""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, MUTED, FAINT = "#1f2933", "#66727f", "#d9dee4"
TASK_COLOURS = ("#2c5fb8", "#e07b26", "#2a9078", "#a0478f", "#8a7a1f", "#5b6b7b")
GOOD, BAD, NEUTRAL, RIVAL = "#2a9078", "#c2413b", "#c3cad2", "#8d9aa8"
STYLE: Any = {
    "font.size": 11,
    "font.family": "DejaVu Sans",
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#edf0f3",
    "grid.linewidth": 1.0,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "gems",  # the same records give the same bytes
}
_POINTS = 400  # more points than pixels only make the page heavy

# Of the labels in a row of a legend.
_LETTERS = 54

Series = Mapping[str, tuple[np.ndarray, np.ndarray]]  # label -> (steps, values)


def lines_chart(series: Series, ylabel: str, *, colours: Sequence[str] = TASK_COLOURS, zero_line: bool = False) -> str:
    """Values over steps: a running mean as a line, the values themselves faint behind it.

    Args:
      series: label to steps and values; a label without values is left out.
      ylabel: what is measured.
      colours: one a series.
      zero_line: marks 0, and colours what lies below it as unwanted.

    Returns:
      SVG text.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = _canvas()
        for (label, (steps, values)), colour in zip(series.items(), colours, strict=False):
            if len(steps) == 0:
                continue
            few = len(steps) <= 30
            x, y = _thinned(steps), _thinned(values)
            if not few:
                axes.plot(x, y, color=colour, alpha=0.22, linewidth=0.9)
            axes.plot(
                x,
                y if few else _running_mean(y),
                color=colour,
                linewidth=2.2,
                label=label,
                solid_capstyle="round",
                marker="o" if few else None,
                markersize=4.5,
            )
        if zero_line:
            axes.axhline(0.0, color=MUTED, linewidth=1.0)
            low, high = axes.get_ylim()
            low, high = min(low, -0.15), max(high, 0.15)
            axes.axhspan(low, 0.0, color=BAD, alpha=0.06, linewidth=0)
            axes.set_ylim(low, high)
            axes.text(0.985, 0.03, "conflict", transform=axes.transAxes, ha="right", color=BAD, fontsize=10)
        _step_axis(axes, ylabel)
        if len(series) > 1:
            _legend(axes)
        return svg(figure)


def shares_chart(series: Series, ylabel: str) -> str:
    """Shares that sum to one over steps, stacked.

    Args:
      series: label to steps and values, all of the same steps.
      ylabel: what is shared out.

    Returns:
      SVG text.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = _canvas()
        steps = next(iter(series.values()))[0]
        smooth = [_running_mean(_thinned(values)) for _, values in series.values()]
        axes.stackplot(
            _thinned(steps), smooth, labels=list(series), colors=TASK_COLOURS[: len(series)],
            alpha=0.85, linewidth=0,
        )  # fmt: skip
        axes.axhline(0.5, color="white", linewidth=1.0, linestyle=(0, (4, 3)))
        axes.set_ylim(0, 1)
        axes.margins(x=0)
        _step_axis(axes, ylabel)
        _legend(axes)
        return svg(figure)


def leak_chart(steps: np.ndarray, values: np.ndarray, bound: float) -> str:
    """A quantity that should stay below a bound, on a logarithmic axis.

    Args:
      steps: ``[n]``.
      values: ``[n]``, zero or more; zeros are drawn at the lower edge.
      bound: drawn as a line.

    Returns:
      SVG text.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = _canvas()
        positive = values[values > 0]
        floor = min(1e-9, float(positive.min()) / 2 if positive.size else 1e-9)
        top = max(bound * 30, float(values.max(initial=0.0)) * 3)
        axes.axhspan(bound, top, color=BAD, alpha=0.06, linewidth=0)
        axes.axhline(bound, color=BAD, linewidth=1.2, linestyle=(0, (4, 3)))
        axes.annotate(f"allowed: {bound:.0e}", (0.985, bound), xycoords=("axes fraction", "data"),
                      xytext=(0, 4), textcoords="offset points", ha="right", color=BAD,
                      fontsize=10)  # fmt: skip
        # The largest of the neighbours: no peak may disappear.
        axes.plot(_thinned(steps), _thinned(np.maximum(values, floor), np.max), color=GOOD, linewidth=1.8)
        axes.set_yscale("log")
        axes.set_ylim(floor, top)
        _step_axis(axes, "leak  |KᵀΔW| / |ΔW|")
        return svg(figure)


def bars_chart(
    rows: Sequence[tuple[str, float, tuple[float, float] | None]], highlighted: str, colour: str, xlabel: str
) -> str:
    """One horizontal bar a method, with its confidence interval where there is one.

    Args:
      rows: method, value and interval, in the order from top to bottom.
      highlighted: method drawn in ``colour``; the others are grey.
      colour: of the highlighted bar.
      xlabel: what is measured.

    Returns:
      SVG text.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = _canvas(rows=len(rows))
        highest = max(max(value, interval[1] if interval else value) for _, value, interval in rows)
        for position, (name, value, interval) in enumerate(rows):
            axes.barh(position, value, height=0.66, color=colour if name == highlighted else NEUTRAL)
            end = value
            if interval:
                axes.plot(interval, [position, position], color=INK, linewidth=1.3, solid_capstyle="butt")
                end = interval[1]
            axes.text(end + 0.015 * highest, position, f"{value:.3f}", va="center",
                      fontweight="bold" if name == highlighted else "normal")  # fmt: skip
        # Where nothing is above 0 there is still an axis.
        axes.set_xlim(0, (highest or 1.0) * 1.16)
        _method_axis(axes, [name for name, _, _ in rows], highlighted, xlabel)
        return svg(figure)


def drift_chart(rows: Sequence[tuple[str, float, float]], highlighted: str, xlabel: str) -> str:
    """Where each run started and ended, as one line a run.

    Args:
      rows: run, value before and value after, in the order from top to bottom.
      highlighted: run drawn in colour; the others are grey.
      xlabel: what is measured.

    Returns:
      SVG text.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = _canvas(rows=len(rows) + 1)
        values = [value for _, before, after in rows for value in (before, after)]
        span = max(max(values) - min(values), 0.05 * abs(max(values)), 1e-6)
        for position, (name, before, after) in enumerate(rows):
            colour = GOOD if name == highlighted else RIVAL
            axes.plot([before, after], [position, position], color=colour, linewidth=7, alpha=0.35,
                      solid_capstyle="round")  # fmt: skip
            axes.plot(before, position, "o", color="white", markeredgecolor=MUTED, markersize=8)
            axes.plot(after, position, "o", color=colour, markersize=9)
            axes.text(max(before, after) + 0.045 * span, position, f"{after - before:+.2f}", va="center",
                      fontweight="bold" if name == highlighted else "normal")  # fmt: skip
        axes.plot([], [], "o", color="white", markeredgecolor=MUTED, markersize=8, label="before tuning")
        axes.plot([], [], "o", color=MUTED, markersize=9, label="after")
        axes.set_xlim(min(values) - 0.08 * span, max(values) + 0.24 * span)
        _method_axis(axes, [name for name, _, _ in rows], highlighted, xlabel)
        _legend(axes)
        return svg(figure)


def _canvas(rows: int | None = None) -> tuple[Figure, Axes]:
    # Narrow and low, so that the letters stay readable where a phone scales the picture down.
    height = 3.1 if rows is None else 1.05 + 0.36 * max(rows, 2)
    figure = Figure(figsize=(5.2, height), layout="constrained")
    return figure, figure.add_subplot()


def _step_axis(axes: Axes, ylabel: str) -> None:
    axes.set_xlabel("step")
    axes.set_ylabel(ylabel)
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(6, integer=True))


def _method_axis(axes: Axes, names: Sequence[str], highlighted: str, xlabel: str) -> None:
    axes.set_yticks(range(len(names)), [_shortened(name) for name in names])
    for tick, name in zip(axes.get_yticklabels(), names, strict=True):
        tick.set_color(INK)
        tick.set_fontweight("bold" if name == highlighted else "normal")
    axes.set_ylim(len(names) - 0.45, -0.55)
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(xlabel)


def _shortened(name: str, limit: int = 26) -> str:
    return name if len(name) <= limit else name[: limit - 1] + "…"


def _legend(axes: Axes) -> None:
    """Above the axes, as many labels in a row as there is room for: a wider one would squeeze the axes to nothing."""
    longest = max(map(len, axes.get_legend_handles_labels()[1]), default=1)
    columns = min(3, max(1, _LETTERS // longest))
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=columns, borderaxespad=0.1, handlelength=1.2,
                columnspacing=1.4, handletextpad=0.5)  # fmt: skip


def _thinned(values: np.ndarray, summary: Callable[[np.ndarray], Any] = np.mean) -> np.ndarray:
    """At most ``_POINTS`` numbers, each for a few neighbours: their mean keeps the level."""
    width = -(-len(values) // _POINTS)
    return np.array([float(summary(values[i : i + width])) for i in range(0, len(values), max(width, 1))])


def _running_mean(values: np.ndarray) -> np.ndarray:
    """Mean over a window of a twentieth of the series, cut off at the ends."""
    half = max(1, len(values) // 40)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    first, end = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return (sums[end] - sums[first]) / (end - first)


def svg(figure: Figure) -> str:
    """A figure as SVG text, the same for the same figure."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return buffer.getvalue()
