"""The catalogue of a table: items by id with title and text, each id once."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gems_jax.data.dataset.tables import Item
from gems_jax.data.raw import reasons
from gems_jax.data.raw.blank import without_words
from gems_jax.data.raw.columns import as_words, as_written
from gems_jax.data.raw.ids import are_dotted, by_value, whole_id
from gems_jax.data.raw.named_columns import NamedColumns
from gems_jax.data.raw.options import TableFiles
from gems_jax.data.raw.quarantine import Quarantine
from gems_jax.data.raw.raw_files import find_files
from gems_jax.data.raw.raw_rows import RawRows, plain_value


def catalogue_files(folder: Path, files: TableFiles) -> list[Path]:
    """Where the catalogue lies; nowhere where the items are those that occur."""
    return [] if files.items is None else find_files(folder, files.items)


def read_items(folder: Path, files: TableFiles, quarantine: Quarantine, names: Sequence[str] = ()) -> list[Item]:
    """The catalogue in the file's order; without a file the items that occur.

    Items without a title and second items of the same id are quarantined; exact copies of an item are counted apart.

    Args:
      folder: what the files' names are under.
      files: names of the file and its columns, words for nothing.
      quarantine: takes bad items.
      names: of the items that occur.

    Raises:
      FileNotFoundError: the file is missing.
      ValueError: a column is missing, too many items are bad, or there is none.
    """
    if files.items is None:
        return [Item(name, name) for name in names]
    columns = NamedColumns("files.item_columns", files.item_columns, ("item_id", "title"), files)
    paths = catalogue_files(folder, files)
    items: dict[str, Item] = {}
    # Words for nothing that stand in several lines where ids are, copies apart.
    words, twice = frozenset(files.missing), set[str]()
    for path in paths:
        for batch in columns.batches(path, quarantine, "item"):
            for row, (item, problem) in enumerate(_items(batch, files, quarantine)):
                where = f"{path.name}: row {batch.numbers[row]}"
                if not problem and item.item_id in words and items.get(item.item_id, item) != item:
                    twice.add(item.item_id)
                    problem = reasons.NO_ID
                add_item(item, items, quarantine, where, problem, batch.raw(row) if problem else None)
    columns.check(len(paths))
    items = _without_words(_whole_ids(items, quarantine), words, twice, quarantine)
    bad = sum(row["kind"] == "item" for row in quarantine.rows)
    quarantine.check("item", len(items) + bad, f"{folder}: {files.items}")
    if not items:
        raise ValueError(f"{folder}: {files.items} holds no item")
    return list(items.values())


def add_item(
    item: Item, items: dict[str, Item], quarantine: Quarantine, where: str, problem: str = "", raw: Any = None
) -> None:
    """An item into the catalogue, or into the quarantine if something is wrong with it or its id is taken.

    Args:
      item: as read.
      items: those before by id; gets this one.
      quarantine: takes it, if it is bad; counts it, if it is a copy of the one with its id.
      where: it stood.
      problem: what is wrong with it.
      raw: the row, if something is.
    """
    before = items.get(item.item_id)
    if before == item and not problem:
        quarantine.copies["item"] += 1
    elif problem or before is not None:
        quarantine.add("item", where, problem or reasons.SECOND_ITEM, raw or vars(item))
        quarantine.left_out_items.add(by_value(item.item_id))
    else:
        items[item.item_id] = item


def _items(batch: RawRows, files: TableFiles, quarantine: Quarantine) -> Iterator[tuple[Item, str]]:
    """The items of a batch, empty text where something is missing, and what is wrong with them."""
    texts: dict[str, list[str | None]] = {"text": [None] * len(batch.numbers)}
    wrong: dict[str, np.ndarray] = {}
    for role, column in batch.columns.items():
        written, bad = as_written(column) if role == "item_id" else as_words(column)
        # Whether a word for nothing is an id is known when all ids are.
        texts[role] = (written if role == "item_id" else without_words(written, tuple(files.missing))[0]).to_pylist()
        if role != "text":
            wrong[role] = bad
        elif bad.any():
            where = f"{batch.path.name}: row {batch.numbers[int(bad.argmax())]}"
            quarantine.remark("{n} cells of text are no text and were left empty", int(bad.sum()), where)
    for row in range(len(batch.numbers)):
        item_id, title, text = (texts[role][row] for role in ("item_id", "title", "text"))
        problem = next((_problem(batch.columns[role][row]) for role in wrong if wrong[role][row]), "")
        problem = problem or (reasons.NO_ID if not item_id else "" if title else reasons.NO_TITLE)
        yield Item(item_id or "", _line(title), _line(text)), problem


def _problem(cell: Any) -> str:
    """Why a cell is no text."""
    if isinstance(cell, str):
        return reasons.NO_UNICODE
    return reasons.NOT_UTF8 if isinstance(plain_value(cell), str) else reasons.NO_TEXT


def _line(text: str | None) -> str:
    return " ".join((text or "").split())


def _without_words(
    items: dict[str, Item], words: Collection[str], twice: Collection[str], quarantine: Quarantine
) -> dict[str, Item]:
    """The items without those whose id is a word for nothing; but a word that one item alone has is its id."""
    for word in [item_id for item_id in items if item_id in words]:
        if word in twice:
            quarantine.add("item", f"item {word}", reasons.NO_ID, vars(items.pop(word)))
        else:
            text = (
                "{n} ids of the catalogue are words for nothing (files.missing) and were read as ids, in all files, "
                "since one item has each; a line without an id is to be taken out of the catalogue"
            )
            quarantine.remark(text, 1, repr(word))
    return items


def _whole_ids(items: dict[str, Item], quarantine: Quarantine) -> dict[str, Item]:
    """Ids such as 12.0 as whole numbers, unless other ids have decimals."""
    spelt = [name for name in items if whole_id(name) != name]
    if not spelt or are_dotted(items):
        return items
    text = "{n} ids of the catalogue are whole numbers written with decimals and were read without"
    quarantine.remark(text, len(spelt), f"{spelt[0]} as {whole_id(spelt[0])}")
    result: dict[str, Item] = {}
    for name, item in items.items():
        other = items.get(whole_id(name), item)
        if (other.title, other.text) != (item.title, item.text):
            # 12 and 12.0 are two items here.
            result[name] = item
            continue
        add_item(Item(whole_id(name), item.title, item.text), result, quarantine, f"item {name}")
    return result
