"""Time of all methods' steps, in turns in one process: what slows the machine down for a while slows all of them."""

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from benchmarks.train_step.methods import REFERENCE, Run
from benchmarks.train_step.problem import REFRESH_EVERY


class Seconds(NamedTuple):
    """Of one step: on the clock, and of all processors together."""

    wall: float
    cpu: float


def timed(name: str, run: Run) -> Seconds:
    wall, cpu = time.perf_counter(), time.process_time()
    losses = run.step()
    taken = Seconds(time.perf_counter() - wall, time.process_time() - cpu)
    if not np.isfinite(losses).all():
        raise ValueError(f"the losses of a step of {name} are {losses}: what it cost says nothing")
    return taken


def in_turns(runs: Mapping[str, Run], rounds: int, refreshes: int) -> dict[str, dict[str, list[Seconds]]]:
    """Seconds of the first step, of plain steps and of refreshes, by method.

    Args:
      runs: begun; each round begins with another one, so that none always follows the same.
      rounds: plain steps of each.
      refreshes: of each that has them, behind its plain steps.
    """
    found = {name: {"first": [timed(name, run)], "plain": [], "refresh": []} for name, run in runs.items()}
    names = list(runs)
    for number in range(rounds):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            found[name]["plain"].append(timed(name, runs[name]))
    for _ in range(refreshes):
        for name, run in runs.items():
            if run.refreshes:
                run.make_refresh_due()
                found[name]["refresh"].append(timed(name, run))
    return found


def summary(found: Mapping[str, Mapping[str, list[Seconds]]]) -> dict[str, dict[str, Any]]:
    """Medians, and of the ratios to the reference, round by round, median and 10 to 90 % range.

    ``amortised`` is the mean of `REFRESH_EVERY` steps, one of which refreshes.
    """
    rows: dict[str, dict[str, Any]] = {}
    for name, kinds in found.items():
        row = rows[name] = {}
        for index, clock in enumerate(Seconds._fields):
            of = {kind: [seconds[index] for seconds in times] for kind, times in kinds.items()}
            plain = float(np.median(of["plain"]))
            refresh = float(np.median(of["refresh"])) if of["refresh"] else plain
            row[clock] = {
                "first": of["first"][0],
                "plain": plain,
                "refresh": refresh if of["refresh"] else None,
                "amortised": plain + (refresh - plain) / REFRESH_EVERY,
                "all_plain": of["plain"],
            }
            if REFERENCE in found:
                ratios = np.divide(of["plain"], [seconds[index] for seconds in found[REFERENCE]["plain"]])
                low, middle, high = np.quantile(ratios, (0.1, 0.5, 0.9))
                row[clock]["times_reference"] = {"median": middle, "10_to_90_percent": [low, high]}
    if REFERENCE in rows:
        for row in rows.values():
            for clock in Seconds._fields:
                base = rows[REFERENCE][clock]["amortised"]
                row[clock]["amortised_times_reference"] = row[clock]["amortised"] / base
    return rows
