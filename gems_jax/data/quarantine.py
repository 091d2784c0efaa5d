"""Raw rows that cannot be used: kept with the reason, counted, and too many of them an error."""

from __future__ import annotations

from collections import Counter
from pathlib import Path


class Quarantine:
    """Collects what was left out while reading raw data.

    Example:
        >>> quarantine = Quarantine(max_bad_fraction=0.5)
        >>> quarantine.add("item", "17", "it has no title")
        >>> quarantine.check("item", total=10, path="items.json")
        >>> quarantine.counts()
        {'item: it has no title': 1}

    Args:
        max_bad_fraction: largest share of the rows of one kind that may be left out.
    """

    def __init__(self, max_bad_fraction: float = 0.05):
        if not 0.0 <= max_bad_fraction <= 1.0:
            raise ValueError(f"max_bad_fraction must lie between 0 and 1, got {max_bad_fraction}")
        self.max_bad_fraction = max_bad_fraction
        self.rows: list[dict[str, str]] = []

    def add(self, kind: str, row_id: str, reason: str, detail: str = "") -> None:
        """Leave one row out; `reason` is the same words for the same cause, `detail` is the row's own."""
        row = {"kind": kind, "id": row_id, "reason": reason}
        self.rows.append(row | {"detail": detail[:200]} if detail else row)

    def counts(self) -> dict[str, int]:
        """Rows left out by kind and reason."""
        return dict(Counter(f"{row['kind']}: {row['reason']}" for row in self.rows))

    def check(self, kind: str, total: int, path: str | Path) -> None:
        """Raise where more than `max_bad_fraction` of the `total` rows of this kind were left out."""
        bad = [row for row in self.rows if row["kind"] == kind]
        if bad and len(bad) > self.max_bad_fraction * total:
            first = bad[0]
            detail = f" ({first['detail']})" if "detail" in first else ""
            raise ValueError(
                f"{path}: {len(bad)} of {total} rows of kind {kind!r} cannot be used, more than the "
                f"allowed share "
                f"of {self.max_bad_fraction:g}; the first is {first['id']!r}: {first['reason']}{detail}. "
                "Repair the file or raise max_bad_fraction."
            )
