"""Metrics that any order of a row's candidates reaches say nothing of a model."""

from collections.abc import Callable, Mapping
from typing import Any

# Ranks that metrics look at.
CUTOFFS = (5, 10, 20)


def few_candidates(results: Mapping[str, Any], label: Callable[[str], str] = str) -> list[str]:
    """A sentence for each task whose rows have so few candidates that a random order finds half of the targets.

    A random order of ``C`` candidates has the target among the first ``k`` with probability ``min(1, k / C)``.

    Args:
      results: task to its metrics, as of ``summarise``; other entries are passed over.
      label: names a task.

    Example:
      >>> few_candidates({"rec": {"hit@10": 1.0, "candidates": 6}, "src": {"hit@10": 0.9, "candidates": 100}})
      ['rec: each row has 6 candidates, so that a random order has hit@5 0.83, hit@10 1.00, hit@20 1.00; more \
of them (data.num_negatives) say more']
    """
    lines = []
    for task, entry in results.items():
        count = entry.get("candidates") if isinstance(entry, Mapping) else None
        chance = {k: min(1.0, k / count) for k in CUTOFFS} if count else {}
        told = [f"hit@{k} {value:.2f}" for k, value in chance.items() if value >= 0.5]
        if told:
            lines.append(
                f"{label(task)}: each row has {count:,} candidates, so that a random order has {', '.join(told)}; "
                "more of them (data.num_negatives) say more"
            )
    return lines
