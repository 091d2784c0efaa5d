"""A card of identifiers as one HTML page that asks for nothing from outside."""

from collections.abc import Mapping
from html import escape
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from gems_jax.identifiers.card import capacity_lines
from gems_jax.report.charts import INK, NEUTRAL, STYLE, TASK_COLOURS, svg
from gems_jax.report.style import CSS

_LIGHT = "#8fb0e3"


def identifiers_page(card: Mapping[str, Any]) -> str:
    """The page of a card, see `gems_jax.identifiers.card.card_of`.

    Args:
      card: of the identifiers.

    Returns:
      HTML text.
    """
    before, after, moved = card["before"], card["after"], card["reassigned"]
    tiles = [
        _tile("Items", f"{after['items']:,}", f"{after['levels']} codes each, of {after['size']} a level"),
        _tile("In collisions", f"{before['in_collisions']:,}", "items that shared all codes; now none do"),
        _tile(
            "Moved", f"{moved['moved']:,}", f"items with another last code, {moved['spilled']:,} with another prefix"
        ),
        _tile(
            "Variance left",
            f"{after['error'][-1]:.1%}",
            f"of the embeddings, behind all codes; {before['error'][-1]:.1%} before items were moved",
        ),
    ]
    rows = "".join(
        f"<tr><td>{level}</td><td>{used:,} of {after['size']:,}</td><td>{most:,}</td><td>{entropy:.2f}</td>"
        f"<td>{left:.1%}</td></tr>"
        for level, (used, most, entropy, left) in enumerate(
            zip(after["used"], after["largest"], after["entropy_bits"], after["error"], strict=True), 1
        )
    )
    capacity = "".join(f'<p class="note">{escape(line)}</p>' for line in capacity_lines(card))
    prefixes = "".join(
        f'<article class="card"><h3>{escape(prefix["token"])} · {prefix["items"]:,} items</h3><ul class="history">'
        + "".join(f"<li>{escape(title)}</li>" for title in prefix["titles"])
        + "</ul></article>"
        for prefix in card["prefixes"]
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Identifiers of items</title><style>{CSS}</style></head><body><main><h1>Identifiers of items</h1>"
        f'<p class="lead">Codes of each item from its text: items alike begin alike.</p>'
        f'<div class="tiles">{"".join(tiles)}</div><h2>Levels</h2><div class="card scroll"><table><thead><tr>'
        "<th>level</th><th>codes used</th><th>most items of a code</th><th>entropy, bits</th><th>variance left</th>"
        f"</tr></thead><tbody>{rows}</tbody></table>{capacity}</div><h2>Items of one first code</h2>"
        '<p class="lead">The first codes with the most items; a piece of a bar is a second code, the grey one all that '
        "are not listed.</p>"
        f'<div class="card"><figure>{prefix_picture(card)}</figure></div><div class="grid">{prefixes}</div>'
        "</main></body></html>\n"
    )


def prefix_picture(card: Mapping[str, Any]) -> str:
    """The first codes with the most items as bars, each cut into its second codes; SVG text."""
    prefixes = card["prefixes"]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 0.8 + 0.3 * len(prefixes)), layout="constrained")
        axes = figure.add_subplot()
        for row, prefix in enumerate(prefixes):
            start = 0
            pieces = [
                (width, TASK_COLOURS[0] if number % 2 else _LIGHT) for number, width in enumerate(prefix["second"])
            ]
            pieces.append((prefix["items"] - sum(prefix["second"]), NEUTRAL))  # of second codes that are not listed
            for width, colour in pieces:
                axes.barh(row, width, left=start, height=0.72, color=colour, edgecolor="white", linewidth=0.4)
                start += width
        axes.invert_yaxis()
        axes.set_yticks(range(len(prefixes)), [prefix["token"] for prefix in prefixes], color=INK)
        axes.set_xlabel("items")
        axes.grid(visible=False, axis="y")
        return svg(figure)


def _tile(what: str, value: str, note: str) -> str:
    return (
        f'<div class="tile" style="--accent:{TASK_COLOURS[0]}"><span class="what">{escape(what)}</span>'
        f'<b>{escape(value)}</b><p class="note">{escape(note)}</p></div>'
    )
