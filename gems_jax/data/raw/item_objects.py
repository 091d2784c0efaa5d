"""A catalogue in one JSON object, item id to title, brand and description, as semantic identifiers come with."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from gems_jax.data.dataset.tables import Item
from gems_jax.data.raw import reasons
from gems_jax.data.raw.blank import unescaped_line
from gems_jax.data.raw.cells import parse_cell
from gems_jax.data.raw.columns import id_text
from gems_jax.data.raw.quarantine import Quarantine
from gems_jax.data.raw.raw_json import read_object
from gems_jax.data.text.plain_text import is_unicode

ITEMS = ".item.json"


def find_catalogue(folders: list[Path], category: str | None, fetch: str) -> tuple[str, Path]:
    """The name and the file of the catalogue ``<name>.item.json``.

    Args:
      folders: where it may lie.
      category: its name; None: there is one alone.
      fetch: how to get the files, for messages.

    Raises:
      FileNotFoundError: there is none of the name.
      ValueError: there are several and none is named.
    """
    found = {path.name.removesuffix(ITEMS): path for folder in folders for path in sorted(folder.glob(f"*{ITEMS}"))}
    if category is None and len(found) > 1:
        raise ValueError(f"{folders[0]} holds {', '.join(sorted(found))}; name one as data.category")
    name = category or next(iter(found), None)
    if name is None or name not in found:
        there = f"; there is {', '.join(sorted(found))}" if found else ""
        raise FileNotFoundError(f"{folders[0]} holds no {name or '<name>'}{ITEMS}{there}; {fetch}")
    return name, found[name]


def read_item_objects(path: Path, quarantine: Quarantine) -> list[Item]:
    """The items in the file's order; text is brand and description. Items without a title are quarantined.

    Args:
      path: ``{"0": {"title": ..., "brand": ..., "description": ...}, ...}``; a description may be a list of texts, or
        such a list as Python writes it. Other fields are not read.
      quarantine: takes bad items.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no such object, too many items are bad, or there is none.
    """
    raw = read_object(path, "item", quarantine)
    malformed = len(quarantine.rows)
    items = []
    for item_id, entry in raw.items():
        if not isinstance(entry, dict):
            quarantine.add("item", f"{path.name}: item {item_id}", reasons.NO_OBJECT, repr(entry))
            continue
        title = unescaped_line(entry.get("title"))
        text = f"{unescaped_line(entry.get('brand'))} {_description(entry.get('description'))}".strip()
        name = id_text(item_id)
        problem = reasons.NO_ID if not name else "" if title else reasons.NO_TITLE
        if not all(map(is_unicode, (item_id, title, text))):
            problem = reasons.NO_UNICODE
        if problem:
            quarantine.add("item", f"{path.name}: item {item_id}", problem, entry)
        else:
            items.append(Item(str(name), title, text))
    quarantine.check("item", len(raw) + malformed, path)
    if not items:
        raise ValueError(f"{path} holds no item")
    return items


def _description(value: Any) -> str:
    """Text, or the parts of a list, which may be written as text."""
    if isinstance(value, str) and value.startswith("["):
        with contextlib.suppress(ValueError):
            value = parse_cell(value)
    parts = value if isinstance(value, list) else [value]
    return " ".join(filter(None, map(unescaped_line, parts)))
