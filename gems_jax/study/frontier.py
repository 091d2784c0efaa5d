"""Ranking against forgetting: what each method ranks at for how much of what the model knew."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gems_jax.study.methods import study_methods
from gems_jax.study.old_names import FORGETTING

# Nats a token that a run may forget, in the page's table; the area is up to `AREA_TO`.
LIMITS = (0.05, 0.1, 0.3, 1.0, 3.0)
AREA_TO = 1.0


class Point(NamedTuple):
    """A run in the plane of forgetting (nats a token) and ranking (mean over tasks of a validation metric)."""

    forgetting: float
    level: float
    row: Mapping[str, Any]


def points_of(summary: Mapping[str, Any], method: str) -> list[Point]:
    """The runs of a method's first seed, those of its other strengths among them.

    Args:
      summary: content of ``study.json``.
      method: name.
    """
    metric, known = summary["study"]["metric"], study_methods()
    points = []
    for row in summary["rows"]:
        named = row["method"]
        family = known[named].strength_of or named if named in known else named
        if family == method and row["seed"] == 0 and "valid" in row:
            level = float(np.mean([row["valid"][task][metric] for task in row["valid"]]))
            points.append(Point(row["general"][FORGETTING], level, row))
    return points


def frontier(points: Sequence[Point]) -> list[Point]:
    """The runs that no other run beats: each ranks better than all that forget as little; ascending.

    Example:
      >>> runs = [Point(0.1, 0.2, {}), Point(0.3, 0.1, {}), Point(0.5, 0.4, {}), Point(0.1, 0.15, {})]
      >>> [(point.forgetting, point.level) for point in frontier(runs)]
      [(0.1, 0.2), (0.5, 0.4)]
    """
    kept: list[Point] = []
    for point in sorted(points, key=lambda point: (point.forgetting, -point.level)):
        if not kept or point.level > kept[-1].level:
            kept.append(point)
    return kept


def best_within(points: Sequence[Point], limit: float) -> Point | None:
    """The run that ranks best among those that forget at most so much; ``None`` where none does.

    Example:
      >>> best_within([Point(0.1, 0.2, {}), Point(0.5, 0.4, {})], 0.3).level, best_within([], 0.3)
      (0.2, None)
    """
    within = [point for point in frontier(points) if point.forgetting <= limit]
    return within[-1] if within else None


def area(points: Sequence[Point], most: float = AREA_TO) -> float:
    """Mean of the best ranking within ``f``, ``1/most integral_0^most best(f) df``; 0 where no run forgets so little.

    A run that forgets less than nothing counts from 0 on.

    Example:
      >>> area([Point(-0.1, 0.25, {}), Point(0.5, 0.75, {})], most=1.0)
      0.5
    """
    steps = [point for point in frontier(points) if point.forgetting < most]
    ends = [max(0.0, point.forgetting) for point in steps] + [most]
    return float(sum(point.level * (ends[i + 1] - ends[i]) for i, point in enumerate(steps)) / most)
