"""The catalogue of a table: items by id with title and text, each id once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gems_jax.data import reasons
from gems_jax.data.blank import without_words
from gems_jax.data.columns import as_words, as_written
from gems_jax.data.ids import are_dotted, whole
from gems_jax.data.named_columns import NamedColumns
from gems_jax.data.options import TableFiles
from gems_jax.data.quarantine import Quarantine
from gems_jax.data.raw_batch import Batch
from gems_jax.data.raw_files import find_files
from gems_jax.data.tables import Item


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
    paths = find_files(folder, files.items)
    items: dict[str, Item] = {}
    for path in paths:
        for batch in columns.batches(path, quarantine, "item"):
            for row, item in enumerate(_items(batch, files, quarantine)):
                where = f"{path.name}: row {batch.numbers[row]}"
                problem = reasons.NO_ID if not item.item_id else "" if item.title else reasons.NO_TITLE
                add_item(item, items, quarantine, where, problem, batch.raw(row) if problem else None)
    columns.check(len(paths))
    items = _whole_ids(items, quarantine)
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
    else:
        items[item.item_id] = item


def _items(batch: Batch, files: TableFiles, quarantine: Quarantine) -> list[Item]:
    """The items of a batch; empty text where something is missing."""
    texts: dict[str, list[str | None]] = {"text": [None] * len(batch.numbers)}
    for role, column in batch.columns.items():
        written, bad = as_written(column) if role == "item_id" else as_words(column)
        texts[role] = without_words(written, tuple(files.missing))[0].to_pylist()
        if role == "text" and bad.any():
            where = f"{batch.path.name}: row {batch.numbers[int(bad.argmax())]}"
            quarantine.remark("{n} cells of text are no text and were left empty", int(bad.sum()), where)
    rows = zip(texts["item_id"], texts["title"], texts["text"], strict=True)
    return [Item(item_id or "", _line(title), _line(text)) for item_id, title, text in rows]


def _line(text: str | None) -> str:
    return " ".join((text or "").split())


def _whole_ids(items: dict[str, Item], quarantine: Quarantine) -> dict[str, Item]:
    """Ids such as 12.0 as whole numbers, unless other ids have decimals."""
    spelt = [name for name in items if whole(name) != name]
    if not spelt or are_dotted(items):
        return items
    text = "{n} ids of the catalogue are whole numbers written with decimals and were read without"
    quarantine.remark(text, len(spelt), f"{spelt[0]} as {whole(spelt[0])}")
    result: dict[str, Item] = {}
    for name, item in items.items():
        add_item(Item(whole(name), item.title, item.text), result, quarantine, f"item {name}")
    return result
