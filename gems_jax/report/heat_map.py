"""A grid of numbers as a picture: rows by name, a column a layer."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from gems_jax.report.charts import BAD, FAINT, INK, STYLE, svg

_COLOURS = LinearSegmentedColormap.from_list("shift", ["#f3f7f6", "#f2d3b0", "#e07b26", BAD])
_WITH_NUMBERS = 8  # more layers leave no room for them


def heat_map(rows: Sequence[tuple[str, np.ndarray]], xlabel: str) -> str:
    """Shares by kernel and layer, darker the larger, as per cents where there is room.

    Args:
      rows: name and values ``[layers]``, from top to bottom; rows may differ in length.
      xlabel: of the columns.

    Returns:
      SVG text.
    """
    width = max(len(values) for _, values in rows)
    grid = np.full((len(rows), width), np.nan)
    for row, (_, values) in enumerate(rows):
        grid[row, : len(values)] = values
    largest = max(float(np.nanmax(grid)), 1e-6)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.2, 1.0 + 0.27 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        # Cells as shapes: an image inside of a picture would be a second file within the page.
        cells = np.ma.masked_invalid(grid)
        axes.pcolormesh(cells, cmap=_COLOURS, vmin=0.0, vmax=largest, edgecolors=FAINT, linewidth=0.6)
        axes.invert_yaxis()
        axes.set_yticks(np.arange(len(rows)) + 0.5, [name for name, _ in rows], fontsize=9.5, color=INK)
        shown = range(0, width, max(1, width // 12))
        axes.set_xticks([layer + 0.5 for layer in shown], [str(layer) for layer in shown])
        axes.set_xlabel(xlabel)
        axes.grid(visible=False)
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)
        for row, column in np.argwhere(np.isfinite(grid)) if width <= _WITH_NUMBERS else ():
            value = grid[row, column]
            colour = "white" if value > 0.75 * largest else INK
            centre = column + 0.5, row + 0.5
            axes.text(*centre, _per_cent(value), ha="center", va="center", fontsize=9, color=colour)
        return svg(figure)


def _per_cent(share: float) -> str:
    per_cent = 100 * share
    return f"{per_cent:.0f} %" if per_cent >= 9.95 or per_cent == 0 else f"{per_cent:.2g} %"
