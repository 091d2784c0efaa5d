"""Raw rows that cannot be used: kept with the reason, counted, and too many of them an error; and what else was odd."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gems_jax.data.raw.reasons import HINTS

# Characters kept of a raw row: enough to find it again, whatever its size.
RAW_LENGTH = 1000
SHOWN = 10


class Remark(NamedTuple):
    """How often something was seen, and the first of it."""

    times: int
    example: str


class Unusable(ValueError):
    """Too few rows can be used; ``rows`` are those left out."""

    def __init__(self, message: str, rows: Sequence[dict[str, str]]):
        super().__init__(message)
        self.rows = rows


class Quarantine:
    """Collects what was left out while reading raw data.

    Args:
      max_bad_fraction: largest share of the rows of one kind that may be left out.
      with_files: whether the source has the options ``files``, so that messages may name them.

    Example:
      >>> quarantine = Quarantine(max_bad_fraction=0.5)
      >>> quarantine.add("item", "17", "it has no title")
      >>> quarantine.check("item", total=10, path="items.json")
      >>> quarantine.counts()
      {'item: it has no title': 1}
    """

    def __init__(self, max_bad_fraction: float = 0.05, with_files: bool = True):
        if not 0.0 <= max_bad_fraction <= 1.0:
            raise ValueError(f"max_bad_fraction must lie between 0 and 1, got {max_bad_fraction}")
        self.max_bad_fraction = max_bad_fraction
        self._with_files = with_files
        self.rows: list[dict[str, str]] = []
        # Cells that were read in another way than they are written, or are odd, though no row was left out.
        self.remarks: dict[str, Remark] = {}
        # Rows that are exact copies of others, by kind; they are no bad rows.
        self.copies: Counter[str] = Counter()
        # Ids, by value, of items whose line of the catalogue is among `rows`.
        self.left_out_items: set[str] = set()

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

    def remark(self, text: str, count: int, example: str) -> None:
        """Count what people should know of; of equal texts, in which ``{n}`` is the number, the first example stays.

        Example:
          >>> quarantine = Quarantine()
          >>> for count in (2, 3):
          ...     quarantine.remark("{n} cells were divided", count, f"row {count}")
          >>> quarantine.said()
          ['5 cells were divided; the first: row 2']
        """
        before = self.remarks.get(text, Remark(0, example))
        self.remarks[text] = before._replace(times=before.times + count)

    def said(self) -> list[str]:
        """The remarks as sentences."""
        return [
            text.replace("{n}", f"{times:,}") + (f"; the first: {example}" if example else "")
            for text, (times, example) in self.remarks.items()
        ]

    def check(self, kind: str, total: int, path: str | Path) -> None:
        """Raise `Unusable` where more than ``max_bad_fraction`` of the ``total`` rows of this kind were left out."""
        bad = [row for row in self.rows if row["kind"] == kind]
        if bad and len(bad) > self.max_bad_fraction * total:
            counts = Counter(row["reason"] for row in bad).most_common()
            reasons = "; ".join(f"{count:,} times {reason}{self._hint(reason)}" for reason, count in counts)
            first = "\n".join(f"  {row['id']!r}: {row['reason']}{_shown(row)}" for row in bad[:SHOWN])
            raise Unusable(
                f"{path}: {len(bad):,} of {total:,} rows of kind {kind!r} cannot be used, more than the allowed share "
                f"of {self.max_bad_fraction:g}: {reasons}\n"
                f"The first are (row 1 of a CSV file is the one below its header)\n{first}\n"
                "Repair the file, set what is named above, or raise data.max_bad_fraction.",
                self.rows,
            )

    def check_usable(self, kind: str, usable: int, path: str | Path) -> None:
        """`check` of rows of which ``usable`` were not left out."""
        self.check(kind, usable + sum(row["kind"] == kind for row in self.rows), path)

    def card(self) -> dict[str, Any]:
        """All of this as the card of a dataset has it."""
        copies = {kind: count for kind, count in self.copies.items() if count}
        return {"quarantined": self.counts(), "copies": copies, "remarks": self.said()}

    def _hint(self, reason: str) -> str:
        hint = HINTS.get(reason, "")
        return f" ({hint})" if hint and (self._with_files or "files." not in hint) else ""


def write_rows(rows: Sequence[dict[str, str]], path: Path) -> None:
    """Rows left out, a JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


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
