"""Other evaluated runs beside one, each over the same candidates as its own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gems_jax.evaluation.candidate_sets import CATALOGUE, place_among
from gems_jax.evaluation.compare_runs import compare_with_each

# What a run is told by beside its tasks.
_OF_RUN = ("general", "steps", "method")


def put_beside(
    results: dict[str, Any],
    others: Mapping[str, Mapping[str, Any]],
    folders: Mapping[str, str],
    workdir: Path,
    samples: int,
) -> None:
    """Adds ``"comparison"`` and ``"paired"`` to an evaluation and its part of the whole catalogue.

    What cannot be beside this run is told in ``"not_compared"``, a sentence each.

    Args:
      results: of this run, by task; it is changed.
      others: name of each other run to the content of its ``eval.json``.
      folders: name of each other run to its work directory.
      workdir: of this run, with its rankings.
      samples: bootstrap resamples and sign flips of the comparison user by user; 0: none.
    """
    results["not_compared"] = []
    for key in ("", CATALOGUE) if CATALOGUE in results else ("",):
        place = results[key] if key else results
        tasks = {task: entry for task, entry in place.items() if isinstance(entry, dict) and "hit@5" in entry}
        place["comparison"], same = {}, {}
        for name, evaluation in others.items():
            where = {task: place_among(evaluation, task, entry.get("candidates")) for task, entry in tasks.items()}
            shown = {
                task: (evaluation[CATALOGUE] if found else evaluation)[task]
                for task, found in where.items()
                if found is not None
            }
            shown |= {part: evaluation[part] for part in _OF_RUN if part in evaluation}
            place["comparison"][name] = shown
            missing = [task for task, found in where.items() if found is None and task in evaluation]
            results["not_compared"] += [_told(name, task, tasks[task], evaluation[task]) for task in missing]
            found_in = set(where.values())
            if not missing and len(found_in) == 1:
                same[name] = Path(folders[name]) / str(found_in.pop() or "")
        if samples:
            place["paired"] = compare_with_each(workdir / key, same, samples=samples)


def _told(name: str, task: str, own: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    return (
        f"{name}, {task}: not shown among {own['candidates']:,} candidates a row, because it was ranked among "
        f"{other['candidates']:,}; evaluate it again"
    )
