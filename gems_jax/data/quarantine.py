"""Raw rows that cannot be used: kept with the reason, counted, and too many of them an error."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

# Characters kept of a raw row: enough to find it again, whatever its size.
RAW_LENGTH = 1000
SHOWN = 10


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

    def add(self, kind: str, row_id: str, reason: str, detail: Any = "") -> None:
        """Leave one row out.

        Args:
            kind: of row: item, event, ...
            row_id: where it stood.
            reason: the same words for the same cause.
            detail: the raw row; cut where it is long.
        """
        row = {"kind": kind, "id": row_id, "reason": reason}
        text = detail if isinstance(detail, str) else raw_text(detail)
        self.rows.append(row | {"detail": shorten(text)} if text else row)

    def counts(self) -> dict[str, int]:
        """Rows left out by kind and reason."""
        return dict(Counter(f"{row['kind']}: {row['reason']}" for row in self.rows))

    def check(self, kind: str, total: int, path: str | Path) -> None:
        """Raise where more than `max_bad_fraction` of the `total` rows of this kind were left out."""
        bad = [row for row in self.rows if row["kind"] == kind]
        if bad and len(bad) > self.max_bad_fraction * total:
            first = "\n".join(f"  {row['id']!r}: {row['reason']}{_shown(row)}" for row in bad[:SHOWN])
            raise ValueError(
                f"{path}: {len(bad):,} of {total:,} rows of kind {kind!r} cannot be used, more than the allowed share "
                f"of {self.max_bad_fraction:g}; the first are {first.strip()}\n"
                "Repair the file or raise max_bad_fraction."
            )


def raw_text(value: Any) -> str:
    """A raw row as one line of text."""
    return json.dumps(value, ensure_ascii=False, default=repr)


def shorten(text: str, length: int = RAW_LENGTH) -> str:
    """The beginning of a text and how long the whole is.

    Example:
        >>> shorten("abcdef", 3)
        'abc... (6 characters)'
    """
    # Lone surrogates, of undecodable bytes, cannot be written as UTF-8.
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text if len(text) <= length else f"{text[:length]}... ({len(text):,} characters)"


def _shown(row: dict[str, str]) -> str:
    return f" ({shorten(row['detail'], 100)})" if "detail" in row else ""
