"""What identifiers are like, in numbers and examples, for a file and a page."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gems_jax.identifiers.codes import Identifiers
from gems_jax.identifiers.reassignment import Reassigned

# Prefixes that are shown, second codes of each, titles of each, letters of a title.
_PREFIXES, _SECOND, _TITLES, _LETTERS = 16, 32, 5, 90


def card_of(
    before: Identifiers,
    after: Identifiers,
    moved: Reassigned,
    titles: Sequence[str],
    made_of: Mapping[str, Any],
    nearest: Identifiers | None = None,
) -> dict[str, Any]:
    """The card of identifiers, JSON values only.

    Args:
      before: as quantised.
      after: without collisions.
      moved: what that took.
      titles: of the N items.
      made_of: what decides the identifiers.
      nearest: of codes with a capacity: the codes of the same embeddings without one.

    Returns:
      ``made_of``; ``before`` and ``after``, as of `Identifiers.report`, and so ``without_capacity``, where there is
      one; ``reassigned``, with the numbers of items
      ``moved`` and ``spilled``; ``prefixes``, the first codes with the most items: ``token``, ``items``, ``second``
      (items of each second code, most first) and ``titles`` of some, those of neighbouring codes beside each other.
    """
    return {
        "made_of": dict(made_of),
        "before": before.report(),
        "after": after.report(),
        **({} if nearest is None else {"without_capacity": nearest.report()}),
        "reassigned": {"moved": moved.moved, "spilled": moved.spilled},
        "prefixes": _largest_prefixes(after, titles),
    }


def card_lines(card: Mapping[str, Any]) -> list[str]:
    """A card in a few lines: a table of the levels, and the collisions."""
    before, after, moved = card["before"], card["after"], card["reassigned"]
    lines = [f"{'level':>5s}  {'codes used':>12s}  {'most items':>10s}  {'entropy, bits':>13s}  {'variance left':>13s}"]
    levels = zip(after["used"], after["largest"], after["entropy_bits"], after["error"], strict=True)
    for number, (used, most, entropy, left) in enumerate(levels, 1):
        lines.append(f"{number:5d}  {used:5d} / {after['size']:<4d}  {most:10,d}  {entropy:13.2f}  {left:13.1%}")
    shared = f"{before['in_collisions']:,} of {after['items']:,} items shared their identifier with another"
    if before["in_collisions"]:
        shared += (
            f": {moved['moved']:,} were moved, {moved['spilled']:,} of them to another prefix, which took the variance "
            f"left from {before['error'][-1]:.2%} to {after['error'][-1]:.2%}"
        )
    return [*lines, shared, *capacity_lines(card)]


def capacity_lines(card: Mapping[str, Any]) -> list[str]:
    """What a capacity did, beside codes of the same embeddings without one, before items were moved; or nothing."""
    if "without_capacity" not in card:
        return []
    kinds = (("as quantised", card["before"]), ("without items.capacity_factor", card["without_capacity"]))
    return [
        f"{what}: at most {' / '.join(f'{most:,}' for most in report['largest'])} items a code, entropy "
        f"{' / '.join(f'{bits:.2f}' for bits in report['entropy_bits'])} bits, {report['in_collisions']:,} items in "
        f"collisions, {report['error'][-1]:.2%} of the variance left"
        for what, report in kinds
    ]


def _largest_prefixes(ids: Identifiers, titles: Sequence[str]) -> list[dict[str, Any]]:
    codes, tokens = ids.codes, ids.tokens()
    counts = np.bincount(codes[:, 0])
    prefixes = []
    for code in np.argsort(-counts, kind="stable")[:_PREFIXES].tolist():
        members = np.flatnonzero(codes[:, 0] == code)
        if not len(members):
            break
        second = np.bincount(codes[members, 1]) if codes.shape[1] > 1 else np.ones(len(members), int)
        members = members[np.lexsort(codes[members].T[::-1])]
        prefixes.append(
            {
                "token": tokens[members[0]][0],
                "items": len(members),
                "second": sorted(second[second > 0].tolist(), reverse=True)[:_SECOND],
                "titles": [titles[item][:_LETTERS] for item in members[:_TITLES].tolist()],
            }
        )
    return prefixes
