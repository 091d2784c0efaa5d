"""Prepared datasets on disk: array-record shards written and read by tensorflow-datasets, without TensorFlow.

A prepared folder holds ``items.jsonl`` (the catalogue in the order of item numbers), ``card.json`` (how it was
made, and the sign that it is complete), ``quarantine.jsonl``, ``tables/``, where a tensorflow-datasets builder of
the dataset's name has one split a table, and ``checksums.json`` of all these.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gems_jax.checksums import NAME, check_written, write_checksums
from gems_jax.data.dataset.array_records import join_tables, read_tables, write_tables
from gems_jax.data.dataset.tables import Dataset, Item
from gems_jax.staging import whole_folder

FORMAT_VERSION = 2
# Raised where the same raw files and options give other tables than before, though they are stored alike. 2: negatives
# know all queries of the log, ids and words for nothing are one in all formats.
CONTENT_VERSION = 2
CARD = "card.json"
ITEMS = "items.jsonl"
QUARANTINE = "quarantine.jsonl"
TABLES = "tables"


def is_complete(folder: str | Path) -> bool:
    """Whether a folder holds a finished dataset (the card comes with the rename at the end)."""
    return (Path(folder) / CARD).is_file()


def is_current(folder: str | Path) -> bool:
    """Whether a finished dataset is of this version's format; an unreadable one is, so that reading it says why."""
    try:
        card = json.loads((Path(folder) / CARD).read_text(encoding="utf-8"))
    except (ValueError, OSError):
        return True
    return not isinstance(card, dict) or card.get("format_version") == FORMAT_VERSION


def is_made_alike(folder: str | Path) -> bool:
    """Whether this version would give a finished dataset the same content, from the same raw files and options."""
    card = _read_json(Path(folder) / CARD)
    return not isinstance(card, dict) or card.get("content_version") == CONTENT_VERSION


def settings_of(folder: str | Path) -> Any:
    """The settings of the dataset in a folder, None where its card has none; a damaged card is an error."""
    card = _read_json(Path(folder) / CARD)
    return card.get("settings") if isinstance(card, dict) else None


def save(dataset: Dataset, folder: str | Path) -> Path:
    """Writes a dataset to a temporary folder beside the one named and renames it; a dataset that is there goes.

    Args:
      dataset: what to write.
      folder: where it goes.

    Returns:
      The folder.
    """
    return _publish(dataset, folder, lambda tables: write_tables(dataset.name, dataset.tables, tables))


def save_shards(dataset: Dataset, shards: Sequence[Path], folder: str | Path) -> Path:
    """As `save`, of a dataset whose rows are on disk in shards.

    Args:
      dataset: what to write; only the names of its tables count.
      shards: folders that `write_tables` wrote to, in the order of the rows.
      folder: where it goes.

    Returns:
      The folder.
    """
    return _publish(dataset, folder, lambda tables: join_tables(shards, tables))


def check_target(folder: str | Path) -> None:
    """Raises where a dataset cannot be written to a folder, because something else is there."""
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; a prepared dataset is a folder, name another place")
    if folder.is_dir() and any(folder.iterdir()) and not is_complete(folder):
        raise ValueError(f"{folder} holds something other than a prepared dataset; name an empty or a new folder")


def _publish(dataset: Dataset, folder: str | Path, write: Callable[[Path], None]) -> Path:
    folder = Path(folder)
    check_target(folder)
    with whole_folder(folder) as temporary:
        _write_lines(temporary / ITEMS, (vars(item) for item in dataset.items))
        _write_lines(temporary / QUARANTINE, dataset.quarantined)
        write(temporary / TABLES)
        card = {
            "format_version": FORMAT_VERSION,
            "content_version": CONTENT_VERSION,
            **dataset.card,
            "tables": ["/".join(key) for key in dataset.tables],
        }
        (temporary / CARD).write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
        write_checksums(temporary)
        temporary.chmod(0o755)
    return folder


def load(folder: str | Path) -> Dataset:
    """Read what `save` wrote.

    Raises:
      FileNotFoundError: there is no finished dataset.
      ValueError: a part of it is damaged or of another format version.
    """
    folder = Path(folder)
    if not is_complete(folder):
        raise FileNotFoundError(f"{folder} holds no prepared dataset ({CARD} is missing); run gems-jax prepare first")
    card = _read_json(folder / CARD)
    if not isinstance(card, dict) or card.get("format_version") != FORMAT_VERSION:
        raise ValueError(f"{folder / CARD} is not of format version {FORMAT_VERSION}; remove the folder, prepare again")
    if not (folder / NAME).is_file():
        warnings.warn(
            f"{folder} has no {NAME}, since an older version prepared it: damage would not be noticed; remove the "
            "folder to have it prepared again",
            stacklevel=2,
        )
    remedy = f"remove {folder} and prepare again"
    check_written(folder, CARD, remedy)
    try:
        items = [Item(**entry) for entry in _read_lines(folder / ITEMS)]
    except TypeError as error:
        raise ValueError(f"{folder / ITEMS} is damaged ({error}); {remedy}") from None
    check_written(folder, ITEMS, remedy)
    check_written(folder, TABLES, remedy)
    keys = [tuple(name.split("/")) for name in card.pop("tables")]
    tables = read_tables(folder / TABLES, keys, len(items))
    quarantined = list(_read_lines(folder / QUARANTINE))
    check_written(folder, QUARANTINE, remedy)
    del card["format_version"]
    card.pop("content_version", None)
    return Dataset(str(card.get("name", folder.name)), items, tables, card, quarantined)


def _write_lines(path: Path, entries: Any) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(entry) + "\n" for entry in entries)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}); remove the folder and prepare again") from None


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}); remove the folder and prepare again") from None
