"""Pictures of a study: each function draws one and gives it as SVG text."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_INK, _MUTED, _FAINT = "#1f2933", "#66727f", "#d9dee4"
_COLOURS = ("#2c5fb8", "#e07b26", "#2a9078", "#a0478f", "#8a7a1f", "#5b6b7b", "#c2413b", "#3fa7c4")
_STYLE: Any = {
    "font.size": 10.5,
    "font.family": "DejaVu Sans",
    "text.color": _INK,
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _MUTED,
    "axes.titlesize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#edf0f3",
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "svg.fonttype": "path",
    "svg.hashsalt": "study",  # the same results give the same bytes
}

# label -> (x, y); a panel of them has a title.
Lines = Mapping[str, tuple[Sequence[float], Sequence[float]]]


def plane(points: Sequence[tuple[str, float, float, float]], labels: tuple[str, str], colour_label: str) -> str:
    """Methods in the plane of two tasks' metrics, coloured by what they have forgotten.

    Args:
      points: name, both metrics, and forgetting.
      labels: of the axes.
      colour_label: of the colours.

    Returns:
      SVG text.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(7.6, 6.4), layout="constrained")
        axes = figure.add_subplot()
        x, y, forgetting = (np.array([point[i] for point in points], np.float64) for i in (1, 2, 3))
        drawn = axes.scatter(
            x,
            y,
            c=forgetting,
            norm=_norm(forgetting),
            cmap="viridis_r",
            s=70,
            edgecolors=_INK,
            linewidths=0.6,
            zorder=3,
        )
        for point, numbers in _together(x, y).items():
            text = ", ".join(str(number + 1) for number in numbers)
            axes.annotate(text, point, xytext=(6, 4), textcoords="offset points", fontsize=9)
        handles = [matplotlib.lines.Line2D([], [], linestyle="none") for _ in points]
        names = [f"{number}  {point[0]}: {point[3]:+.2g}" for number, point in enumerate(points, 1)]
        for columns in (3, 2):
            legend = figure.legend(
                handles, names, loc="outside lower center", ncols=columns, handlelength=0, handletextpad=0
            )
            figure.draw_without_rendering()
            # Texts differ in width by some percent from one resolution to another.
            if legend.get_window_extent().width <= 0.95 * figure.bbox.width or columns == 2:
                break
            legend.remove()
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        axes.margins(x=0.18, y=0.1)
        bar = figure.colorbar(drawn, ax=axes)
        bar.set_label(colour_label)
        bar.outline.set_visible(False)
        return _svg(figure)


def steps(lines: Lines, xlabel: str, ylabel: str) -> str:
    """Curves that stay as high as they have been until the next point lifts them, over values of very different size.

    Args:
      lines: label to ascending x and y.
      xlabel, ylabel: of the axes; x is linear up to .1 and logarithmic above.

    Returns:
      SVG text.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(7.6, 4.6), layout="constrained")
        axes = figure.add_subplot()
        last = max(max(x) for x, _ in lines.values())
        for index, (label, (x, y)) in enumerate(lines.items()):
            colour = _COLOURS[index % len(_COLOURS)]
            axes.step([*x, max(last * 1.3, 0.1)], [*y, y[-1]], where="post", color=colour, linewidth=1.8, label=label)
            axes.plot(x, y, "o", color=colour, markersize=5)
        axes.set_xscale("symlog", linthresh=0.1)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        figure.legend(loc="outside upper center", ncols=min(len(lines), 4))
        return _svg(figure)


def panels(
    groups: Mapping[str, Lines], xlabel: str, ylabel: str, *, zero_line: bool = False, share_axis: bool = False
) -> str:
    """Lines in panels side by side.

    Args:
      groups: title of each panel and its lines; equal labels have equal colours.
      xlabel: of all.
      ylabel: of all.
      zero_line: marks 0.
      share_axis: whether ``x`` are shares, drawn by powers of two.

    Returns:
      SVG text.
    """
    with matplotlib.rc_context(_STYLE):
        count = len(groups)
        figure = Figure(
            figsize=(7.6 if count == 1 else 3.9 * min(count, 3), 3.4 * -(-count // 3)), layout="constrained"
        )
        labels = list(dict.fromkeys(label for lines in groups.values() for label in lines))
        colours = {label: _COLOURS[i % len(_COLOURS)] for i, label in enumerate(labels)}
        first: Axes | None = None
        for index, (title, lines) in enumerate(groups.items()):
            axes = figure.add_subplot(-(-count // 3), min(count, 3), index + 1, sharey=first)
            first = first or axes
            for label, (x, y) in lines.items():
                axes.plot(
                    x,
                    y,
                    color=colours[label],
                    linewidth=1.8,
                    label=label,
                    marker="o" if len(x) < 12 else None,
                    markersize=4,
                )
            if zero_line:
                axes.axhline(0.0, color=_MUTED, linewidth=0.9)
            if share_axis:
                axes.set_xscale("log", base=2)
            if title:
                axes.set_title(title, loc="left")
            axes.set_xlabel(xlabel)
        assert first is not None
        first.set_ylabel(ylabel)
        handles = [matplotlib.lines.Line2D([], [], color=colours[label], linewidth=1.8) for label in labels]
        figure.legend(handles, labels, loc="outside upper center", ncols=min(len(labels), 4))
        return _svg(figure)


def _norm(forgetting: np.ndarray) -> matplotlib.colors.Normalize:
    """The scale of colours: by magnitude, as values differ by orders of it; linear near 0 if some are not above 0."""
    least, most = float(forgetting.min()), float(forgetting.max())
    if least > 0:
        return matplotlib.colors.LogNorm(least / 1.05, most * 1.05)
    largest = max(float(np.abs(forgetting).max()), 1e-3)
    return matplotlib.colors.SymLogNorm(linthresh=largest / 30, vmin=least, vmax=max(most, largest))


def _together(x: np.ndarray, y: np.ndarray) -> dict[tuple[float, float], list[int]]:
    """Points that lie on each other, by the position of the first: one text for all of them."""
    near = np.array([np.ptp(x), np.ptp(y)]) / 40 + 1e-12
    groups: dict[tuple[float, float], list[int]] = {}
    for number, point in enumerate(zip(x.tolist(), y.tolist(), strict=True)):
        first = next((p for p in groups if np.all(np.abs(np.subtract(p, point)) <= near)), point)
        groups.setdefault(first, []).append(number)
    return groups


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    # On white: a page may be read on a dark ground.
    figure.savefig(buffer, format="svg", facecolor="white", metadata={"Date": None})
    # Without the spaces at line ends, which version control complains about.
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"
