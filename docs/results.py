"""The picture on README.md: `python docs/results.py` draws docs/results.svg from a study's stored results.

Ranking of test rows against forgetting, each method at the setting that is best on validation rows.
"""

import json
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "study_gpu_tuned.json"
PANELS = (("rec", "recommendation", 0.20, 0.26, 0.02), ("src", "search", 0.90, 0.98, 0.02))
WIDTH, HEIGHT, LEFT, TOP, GAP = 300, 220, 60, 40, 70
MOST, EVERY = 32, 8  # of forgetting, on the axis
# Names that would lie on others stand to the left of their point, or below it.
LEFT_OF = {("rec", "uncertainty weighting"), ("rec", "joint AdamW"), ("src", "PCGrad")}
BELOW = {("rec", "uncertainty weighting"), ("rec", "PCGrad"), ("src", "PCGrad"), ("src", "CAGrad"), ("src", "GaLore")}


def points(study, task):
    """Method -> forgetting over all tokens, its spread over seeds, ndcg@10 and its spread."""
    found = {}
    for method in study["methods"]:
        after, before, y = (
            method["numbers"][name] for name in ("general/loss_full", "general/base_loss", f"test/{task}/ndcg@10")
        )
        found[method["label"]] = (after["mean"] - before["mean"], after["sd"], y["mean"], y["sd"])
    return found


def panel(found, number, task, title, low, high, step):
    """One task's axes and points."""
    left = LEFT + number * (WIDTH + GAP)

    def at(x, y):
        return left + x / MOST * WIDTH, TOP + HEIGHT - (y - low) / (high - low) * HEIGHT

    parts = [
        f'<text x="{left}" y="{TOP - 14}" font-weight="bold">{title}, ndcg@10</text>',
        f'<text x="{left + WIDTH}" y="{TOP + HEIGHT + 36}" text-anchor="end">forgetting, nats a token</text>',
    ]
    for tick in range(0, MOST + 1, EVERY):
        x, y = at(tick, low)
        parts.append(f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{y:.1f}" stroke="#eee"/>')
        parts.append(f'<text x="{x:.1f}" y="{y + 18:.1f}" text-anchor="middle" fill="#555">{tick}</text>')
    for index in range(round((high - low) / step) + 1):
        x, y = at(0, low + index * step)
        parts.append(f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{left + WIDTH}" y2="{y:.1f}" stroke="#eee"/>')
        parts.append(
            f'<text x="{x - 8:.1f}" y="{y + 4:.1f}" text-anchor="end" fill="#555">{low + index * step:.2f}</text>'
        )
    for label, (x, spread, y, own) in found.items():
        colour = "#c2410c" if label == "GEMS" else "#47617a"
        (px, py), (x0, _), (x1, _) = at(x, y), at(max(x - spread, 0), y), at(min(x + spread, MOST), y)
        (_, y0), (_, y1) = at(x, y - own), at(x, y + own)
        parts.append(
            f'<path d="M{x0:.1f} {py:.1f}H{x1:.1f}M{px:.1f} {y0:.1f}V{y1:.1f}" stroke="{colour}" opacity=".45"/>'
        )
        parts.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="4" fill="{colour}"/>')
        anchor, dx = ("end", -7) if (task, label) in LEFT_OF else ("start", 7)
        dy = 14 if (task, label) in BELOW else -6
        weight = ' font-weight="bold"' if label == "GEMS" else ""
        place = f'x="{px + dx:.1f}" y="{py + dy:.1f}" text-anchor="{anchor}"'
        parts.append(f'<text {place} fill="{colour}"{weight}>{escape(label)}</text>')
    return parts


def drawing():
    """The picture as SVG."""
    study = json.loads(RESULTS.read_text())
    width, height = LEFT + len(PANELS) * (WIDTH + GAP), TOP + HEIGHT + 50
    head = f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {head}>',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for number, (task, *about) in enumerate(PANELS):
        parts += panel(points(study, task), number, task, *about)
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    (ROOT / "docs" / "results.svg").write_text(drawing())
