"""Ids by value, whatever the file: 12.0, as programs write a whole number in a column with gaps, is 12."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np

from gems_jax.data.raw.blank import trimmed
from gems_jax.data.raw.examples import Examples, Vocabulary
from gems_jax.data.raw.quarantine import Quarantine

# Digits alone, without a zero before them: 007.0 and 1e5 are text.
_WHOLE = re.compile(r"(-?[1-9]\d*|0)\.0+")
_DOTTED = re.compile(r"-?\d+(\.\d+)+")
# Marks that divide ids in text, or make lists of it.
_MARKS = re.compile(r"[\s,;|\[\](){}'\"]")


def whole_id(name: str) -> str:
    """A whole number without its decimals; all else as it is.

    Example:
      >>> [whole_id(name) for name in ("12.0", "12", "007.0", "1.10", "1e5", "9007199254740993.0")]
      ['12', '12', '007.0', '1.10', '1e5', '9007199254740993']
    """
    match = _WHOLE.fullmatch(name) if name.endswith("0") else None
    return match[1] if match else name


def by_value(name: str) -> str:
    """An id as all its spellings have it: letters composed, nothing invisible at its ends, and as of `whole_id`.

    Example:
      >>> by_value("12.0"), by_value("cafe\\u0301\\u200b") == "caf\\u00e9"
      ('12', True)
    """
    return whole_id(name if name.isascii() else _composed(name))


def _composed(name: str) -> str:
    return trimmed(unicodedata.normalize("NFC", name))


def are_dotted(names: Collection[str]) -> bool:
    """Whether ids are versions or decimals, such as 1.1 or 2.0.3: then 1.0 is one of them and no whole number.

    Example:
      >>> are_dotted(["1.0", "2.0", "x"]), are_dotted(["1.0", "1.10"])
      (False, True)
    """
    return any("." in name and whole_id(name) == name and _DOTTED.fullmatch(name) for name in names)


class KnownIds:
    """Ids that are known, found as they are written or by value.

    Args:
      ids: all of them.

    Example:
      >>> known = KnownIds(["A 1", "12", "1.0"])
      >>> known.find("A 1"), known.find("12.0"), known.find("1"), known.find("A")
      ('A 1', '12', '1.0', None)
      >>> known.marked
      True
    """

    def __init__(self, ids: Iterable[str]):
        self.ids = frozenset(ids)
        self._by_value = {value: name for name in self.ids if (value := by_value(name)) != name}
        self._folded: dict[str, str] = {}
        # Whether some id holds what otherwise divides ids.
        self.marked = any(map(_MARKS.search, self.ids))

    def find(self, name: str) -> str | None:
        """The known id of a name, or None."""
        if name in self.ids:
            return name
        value = by_value(name)
        return value if value in self.ids else self._by_value.get(value)

    def near(self, name: str) -> str | None:
        """The id that differs from an unknown name by case and leading zeros alone, or None."""
        if not self._folded:
            self._folded.update((_folded(known), known) for known in self.ids)
        return self._folded.get(_folded(name))


def same_ids(examples: Examples, catalogue: KnownIds | None, quarantine: Quarantine) -> Examples:
    """Rows in which each user and each item has one spelling; what was spelt differently is counted.

    Args:
      examples: rows as read.
      catalogue: of the items, whose spelling holds; None: a number without its decimals.
      quarantine: gets the counts.
    """
    names = examples.names
    users, user_of = _respelled(names.users.names, _spellings(names.users.names, quarantine, "user_id"))
    if catalogue is None:
        spellings = _spellings(names.items.names, quarantine, "item")
    else:
        spellings = [catalogue.find(name) or name for name in names.items.names]
        _remark_near(spellings, catalogue, quarantine)
    items, item_of = _respelled(names.items.names, spellings)
    changes: dict[str, Any] = {}
    if users is not None:
        _count(quarantine, "user_id", examples.user, names.users.names, users, user_of)
        changes |= {"user": user_of[examples.user]}
    if items is not None:
        for what in ("targets", "history", "negatives", "shown"):
            lists = getattr(examples, what)
            if lists is not None:
                _count(quarantine, what.removesuffix("s"), lists.values, names.items.names, items, item_of)
                changes[what] = lists.map(item_of)
    if not changes:
        return examples
    if items is not None:
        changes["names"] = names.replace(items=items, left_out=names.left_out.with_items(item_of))
    if users is not None:
        changes["names"] = changes.get("names", names).replace(users=users)
    return examples.replace(**changes)


def _spellings(names: Sequence[str], quarantine: Quarantine, what: str) -> Sequence[str]:
    values = [by_value(name) for name in names]
    _remark_alike(values, quarantine, what)
    if values == list(names):
        return names
    if not are_dotted(names):
        return values
    composed = [name if name.isascii() else _composed(name) for name in names]
    both = set(names) & {value for value, name in zip(values, names, strict=True) if value != name}
    if both:
        first = min(both)
        quarantine.remark(
            f"{{n}} values of {what} stand there with and without .0 and are kept apart, because others have decimals",
            len(both),
            f"{first} and {first}.0",
        )
    return composed


def _folded(name: str) -> str:
    return (name if name.isascii() else unicodedata.normalize("NFKC", name)).casefold().lstrip("0")


def _remark_alike(names: Sequence[str], quarantine: Quarantine, what: str) -> None:
    """Counts ids that differ from another by case or leading zeros alone."""
    first: dict[str, str] = {}
    alike = [(name, other) for name in names if (other := first.setdefault(_folded(name), name)) != name]
    if alike:
        quarantine.remark(
            f"{{n}} values of {what} differ from another by case or leading zeros alone and are kept apart",
            len(alike),
            f"{alike[0][1]} and {alike[0][0]}",
        )


def _remark_near(names: Sequence[str], catalogue: KnownIds, quarantine: Quarantine) -> None:
    """Counts items that are not in the catalogue but for other case or zeros; shows its ids where most are not."""
    unknown = dict.fromkeys(name for name in names if name not in catalogue.ids)
    near = [(name, known_id) for name in unknown if (known_id := catalogue.near(name)) is not None]
    if len(unknown) > len(near) and len(unknown) >= len(names) / 2:
        shown = ", ".join(repr(known[:40]) for known in sorted(catalogue.ids)[:3])
        quarantine.remark(
            f"{{n}} of {len(names):,} items are not in the catalogue, whose ids are such as {shown}",
            len(unknown),
            repr(next(iter(unknown))[:40]),
        )
    if near:
        quarantine.remark(
            "{n} items are not in the catalogue, which has them in other case or with other leading zeros; spell them "
            "alike in all files",
            len(near),
            f"{near[0][0]}, there {near[0][1]}",
        )


def _respelled(names: Sequence[str], spellings: Sequence[str]) -> tuple[Vocabulary | None, np.ndarray]:
    """A vocabulary of the spellings, None where they are the names, and each name's number in it."""
    if list(names) == list(spellings):
        return None, np.arange(len(names), dtype=np.int32)
    vocabulary = Vocabulary()
    return vocabulary, np.asarray([vocabulary.add(name) for name in spellings], np.int32)


def _count(
    quarantine: Quarantine, what: str, values: np.ndarray, names: Sequence[str], made: Vocabulary, number_of: np.ndarray
) -> None:
    changed = np.asarray([name != made.names[number] for name, number in zip(names, number_of, strict=True)], bool)
    rows = np.flatnonzero(changed[values])
    if len(rows):
        old = int(values[rows[0]])
        quarantine.remark(
            f"{{n}} values of {what} are spelt in two ways (12 and 12.0, accents apart or not) and were read as one",
            len(rows),
            f"{names[old]} as {made.names[number_of[old]]}",
        )
