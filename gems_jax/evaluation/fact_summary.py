"""What a tuned model has kept of the answers that its base was sure of, in numbers and in a sentence."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gems_jax.evaluation.bootstrap import bootstrap_interval

# Answers of which a share says something: of fewer, one is more than a twentieth.
LEAST = 20


def fact_numbers(known: np.ndarray, kept: np.ndarray | None, samples: int = 1000) -> dict[str, Any]:
    """The numbers of one tuned model.

    Args:
      known: bool ``[N]``, the prompts whose answer the base is sure of.
      kept: bool ``[N]``, those that the tuned model answers as the base does; ``None`` where there are too few.
      samples: resamples of the interval; 0: none.

    Returns:
      ``"facts_asked"``, ``"facts_known"``, and of at least `LEAST` known ones ``"facts_kept"``, the share of them that
      is kept, with its 95 % interval over prompts, ``"facts_kept_ci"``. JSON values only.

    Example:
      >>> fact_numbers(np.arange(50) < 25, np.arange(50) < 20, samples=0)
      {'facts_asked': 50, 'facts_known': 25, 'facts_kept': 0.8}
      >>> fact_numbers(np.arange(50) < 3, None)
      {'facts_asked': 50, 'facts_known': 3}
    """
    numbers: dict[str, Any] = {"facts_asked": len(known), "facts_known": int(known.sum())}
    if kept is None or numbers["facts_known"] < LEAST:
        return numbers
    values = kept[known].astype(np.float64)
    numbers["facts_kept"] = float(values.mean())
    if samples:
        numbers["facts_kept_ci"] = list(bootstrap_interval(values, np.arange(len(values)), samples=samples))
    return numbers


def by_kind(kinds: Sequence[str], known: np.ndarray, kept: np.ndarray | None) -> dict[str, dict[str, int]]:
    """How many prompts of each kind there are, how many of their answers are known and, of these, kept.

    Example:
      >>> by_kind(["day", "day", "sum"], np.array([True, False, True]), np.array([True, True, False]))
      {'day': {'asked': 2, 'known': 1, 'kept': 1}, 'sum': {'asked': 1, 'known': 1, 'kept': 0}}
    """
    counts: dict[str, dict[str, int]] = {}
    for place, kind in enumerate(kinds):
        entry = counts.setdefault(kind, {"asked": 0, "known": 0} | ({} if kept is None else {"kept": 0}))
        entry["asked"] += 1
        entry["known"] += int(known[place])
        if kept is not None:
            entry["kept"] += int(known[place] and kept[place])
    return counts


def fact_lines(general: Mapping[str, Any]) -> list[str]:
    """A sentence about what is kept, or about why nothing is said of it; none where nobody asked.

    Args:
      general: numbers of a run, those of `fact_numbers` among them.

    Example:
      >>> fact_lines({"facts_asked": 341, "facts_known": 200, "facts_kept": 0.985, "facts_kept_ci": [0.965, 1.0]})
      ['facts: 98.5% [96.5%, 100.0%] of the 200 answers that the base model is sure of are kept, of 341 prompts']
      >>> fact_lines({"facts_asked": 341, "facts_known": 3}), fact_lines({})
      (['facts: the base model is sure of 3 answers to 341 prompts, too few to say what is kept (20)'], [])
    """
    if "facts_known" not in general:
        return []
    known, asked = general["facts_known"], general["facts_asked"]
    if "facts_kept" not in general:
        sure = f"{known} answer{'' if known == 1 else 's'}"
        return [f"facts: the base model is sure of {sure} to {asked} prompts, too few to say what is kept ({LEAST})"]
    ends = general.get("facts_kept_ci")
    interval = f" [{ends[0]:.1%}, {ends[1]:.1%}]" if ends else ""
    kept = f"{general['facts_kept']:.1%}{interval}"
    return [f"facts: {kept} of the {known} answers that the base model is sure of are kept, of {asked} prompts"]
