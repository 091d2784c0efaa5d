"""What is measured of a run whose catalogue was edited since it was tuned."""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import numpy as np

from gems_jax.data.dataset.tables import Table


def edited_catalogue(
    counts: tuple[int, int], removed: Collection[int], sets: Iterable[Mapping[str, Table] | None]
) -> dict[str, Any]:
    """What an edited catalogue means for the rows that are measured.

    Rows with candidates of their own are ranked as before the edits, removed items among the candidates. Among a whole
    catalogue added items are ranked, too, and a row whose target was removed counts as one whose target is not found.

    Args:
      counts: items that were added and are ranked, items of training that are not.
      removed: numbers of items that are not ranked.
      sets: task to the rows that are measured, for each set of candidates, see `candidate_sets`.

    Returns:
      ``added``, ``removed``; ``as_before``, the tasks that are ranked among candidates of their rows; ``whole``, those
      that are ranked among the whole catalogue, each with the number of its rows whose target was removed. JSON values.

    Example:
      >>> from gems_jax.data.dataset.tables import Row
      >>> table = Table.from_rows("rec", [Row("ann", [0], 3), Row("bob", [0], 1)])
      >>> edited_catalogue((5, 1), [3], [{"rec": table}, None])
      {'added': 5, 'removed': 1, 'as_before': [], 'whole': {'rec': 1}}
    """
    tables = [pair for each in sets if each is not None for pair in each.items()]
    gone = {task: int(np.isin(table.target, list(removed)).sum()) for task, table in tables if table.negatives is None}
    as_before = [task for task, table in tables if table.negatives is not None]
    return {"added": counts[0], "removed": counts[1], "as_before": as_before, "whole": gone}


def edited_lines(results: Mapping[str, Any], label: Callable[[str], str] = str) -> list[str]:
    """The same in a line for people; none where the catalogue is that of training.

    Args:
      results: the content of ``eval.json``.
      label: names a task.

    Example:
      >>> edited_lines({"edited": {"added": 5, "removed": 1, "as_before": ["rec"], "whole": {}}})
      ['catalogue edited: +5 -1 items since training; rows with candidates of their own are ranked as before']
      >>> new = {"added": 5, "removed": 0, "as_before": [], "whole": {}}
      >>> edited_lines({"edited": new, "baselines": {"SASRec": {"rec": {"settings": {"width": 64}}}}})
      ['catalogue edited: +5 -0 items since training; added items have no training rows for SASRec']
    """
    edited = results.get("edited")
    if not edited:
        return []
    said = [f"catalogue edited: +{edited['added']:,} -{edited['removed']:,} items since training"]
    for task, gone in edited["whole"].items():
        said.append(
            f"{label(task)} is ranked among all items of now, and {gone:,} of its rows have a target that was removed"
        )
    if edited["as_before"]:
        said.append("rows with candidates of their own are ranked as before")
    trained = [
        name for name, tasks in results.get("baselines", {}).items() if any("settings" in e for e in tasks.values())
    ]
    if edited["added"] and trained:
        said.append(f"added items have no training rows for {', '.join(trained)}")
    return ["; ".join(said)]
