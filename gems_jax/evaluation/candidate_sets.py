"""What each row's target is ranked among: the sampled negatives of its row, the whole catalogue, or both apart."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from gems_jax.data.dataset.tables import Table

# Catalogues of fewer items are ranked whole, too, where nothing else is asked for: beyond, it takes long on CPUs.
LARGEST = 100_000
# Key of an evaluation over the whole catalogue beside one over sampled candidates, and folder of its rankings.
CATALOGUE = "catalogue"

Candidates = Literal["auto", "sampled", "all", "both"]


class CandidateSets(NamedTuple):
    """The rows to measure, by task.

    Attributes:
      main: with their negatives or, where the whole catalogue alone was asked for, without.
      whole: the same rows without negatives, where both were asked for and ``main`` has some.
    """

    main: dict[str, Table]
    whole: dict[str, Table] | None


def candidate_sets(tables: Mapping[str, Table], candidates: Candidates, num_items: int) -> CandidateSets:
    """The rows to measure, once for each set of candidates.

    Args:
      tables: task to its rows; those without negatives are ranked against the whole catalogue anyway.
      candidates: ``sampled``: the target and the row's negatives; ``all``: the whole catalogue, items of the user's
        history among them; ``both``; ``auto``: ``both`` for catalogues of fewer than `LARGEST` items, else ``sampled``.
      num_items: size of the catalogue.

    Example:
      >>> from gems_jax.data.dataset.tables import Row
      >>> tables = {"rec": Table.from_rows("rec", [Row("ann", [0], 1, negatives=[2])])}
      >>> sets = candidate_sets(tables, "auto", num_items=3)
      >>> sets.main["rec"].negatives.tolist(), sets.whole["rec"].negatives
      ([[2]], None)
    """
    if candidates == "auto":
        candidates = "both" if num_items < LARGEST else "sampled"
    without = {task: dataclasses.replace(table, negatives=None) for task, table in tables.items()}
    if candidates == "all" or all(table.negatives is None for table in tables.values()):
        return CandidateSets(without, None)
    return CandidateSets(dict(tables), without if candidates == "both" else None)


def place_among(evaluation: Mapping[str, Any], task: str, candidates: int | None) -> str | None:
    """Where an evaluation has a task's metrics over so many candidates.

    Args:
      evaluation: content of an ``eval.json``.
      task: its name.
      candidates: number of candidates of each row; ``None``: it is not known.

    Returns:
      ``""``: at the top, with rankings in the work directory; `CATALOGUE`: under this key, with rankings in this folder
      of it; ``None``: nowhere.

    Example:
      >>> evaluation = {"rec": {"candidates": 100}, "catalogue": {"rec": {"candidates": 9}}}
      >>> [place_among(evaluation, "rec", count) for count in (100, 9, 50)]
      ['', 'catalogue', None]
    """
    for place, entries in (("", evaluation), (CATALOGUE, evaluation.get(CATALOGUE) or {})):
        entry = entries.get(task)
        # Files of earlier versions do not say how many candidates there were: those they have are taken for the same.
        if isinstance(entry, Mapping) and (candidates is None or entry.get("candidates", candidates) == candidates):
            return place
    return None
