"""Searches that take turns on the clock, so that both meet the same machine."""

import statistics
import time
from collections.abc import Callable
from typing import Any

from ranking_device import on_gpu

# Seconds before each turn on a CPU: torch's threads keep the cores busy for a while after their work is done, which
# whatever comes next would pay for. Cores that have slept are slow at first: a run that does not count comes between.
PAUSE = 0.3


def turns(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each in every round, after one round that does not count.

    Every other round goes the other way. On a CPU a turn is a pause, a run that does not count, and one that does; on a
    GPU there is no pause, in which its clock would fall.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in list(runs.items())[:: 1 if number % 2 else -1]:
            if not on_gpu():
                time.sleep(PAUSE)
                run()
            begin = time.perf_counter()
            run()
            if number:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratio(over: list[float], under: list[float]) -> dict[str, float]:
    """The ratio of the medians, and the least and most of any round."""
    within = [a / b for a, b in zip(over, under, strict=True)]
    return {"of_medians": statistics.median(over) / statistics.median(under), "min": min(within), "max": max(within)}
