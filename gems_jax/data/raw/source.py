"""Rows and catalogue of raw files, before anything is done to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gems_jax.data.dataset.tables import Item
from gems_jax.data.raw.examples import Examples


@dataclass(frozen=True)
class Source:
    """All rows and the catalogue of raw files, as a reader returns them.

    Args:
      name: of the dataset.
      path: of its files, for messages.
      examples: all rows that could be read.
      items: the catalogue.
      used_only: whether items that no row names leave the catalogue.
      per_task: whether the last row of each task is held out, rather than the last of all.
      query_of_item: item id to a query: every row of such an item then also is a search with it.
      as_published: whether the rows are a published split that is kept row by row. Users may then take items again, a
        row of valid or test may see events of its own split that came before it, and targets may be such that training
        never shows; all of these are counted.
    """

    name: str
    path: str
    examples: Examples
    items: list[Item]
    used_only: bool = True
    per_task: bool = True
    query_of_item: Mapping[str, str] | None = None
    as_published: bool = False
