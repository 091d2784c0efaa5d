"""The sources of data by name. A new one is a file in this folder and a line here."""

from __future__ import annotations

import re

from gems_jax.data.sources import (
    amazon,
    amazon_scientific,
    amazon_splits,
    collisiongenrec,
    kuaisar,
    minionerec,
    qilin,
    released,
    table,
)
from gems_jax.data.sources.entry import SourceEntry
from gems_jax.data.sources.synthetic import marketplace

_ENTRIES: dict[str, SourceEntry] = {
    "marketplace": marketplace.SOURCE,
    "amazon_scientific": amazon_scientific.SOURCE,
    "amazon": amazon.SOURCE,
    "qilin": qilin.SOURCE,
    "released": released.SOURCE,
    "table": table.SOURCE,
    "kuaisar": kuaisar.SOURCE,
    "minionerec": minionerec.SOURCE,
    "collisiongenrec": collisiongenrec.SOURCE,
    "amazon_splits": amazon_splits.SOURCE,
}


def names() -> tuple[str, ...]:
    """All sources, those of this package first."""
    return tuple(_ENTRIES)


def entry_of(name: str) -> SourceEntry:
    """The source of a name.

    Raises:
      ValueError: there is none.

    Example:
      >>> entry_of("released").takes_preprocessing, entry_of("marketplace").takes_preprocessing
      (True, False)
    """
    if name not in _ENTRIES:
        raise ValueError(f"unknown data source {name!r}; use one of {', '.join(names())}")
    return _ENTRIES[name]


def register(name: str, entry: SourceEntry) -> None:
    """Adds a source, from then on a name that `prepare` and ``data.name`` know.

    Args:
      name: lower-case letters, digits and underscores.
      entry: what the source is.

    Raises:
      ValueError: the name is of another form, or a source has it already.
    """
    if not re.fullmatch("[a-z][a-z0-9_]*", name):
        raise ValueError(f"a source's name is of lower-case letters, digits and _, a letter first, got {name!r}")
    if name in _ENTRIES:
        raise ValueError(f"there is a data source {name!r} already; there are {', '.join(names())}")
    _ENTRIES[name] = entry
