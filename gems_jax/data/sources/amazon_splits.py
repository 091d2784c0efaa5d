"""Amazon Reviews 2023 (arXiv 2403.03952) as its authors split it: by last purchases or by time, row by row."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from gems_jax.data.dataset.tables import SPLITS
from gems_jax.data.preparation.options import PrepareOptions
from gems_jax.data.preparation.read_cache import ReadCache
from gems_jax.data.raw.examples import Examples, Names
from gems_jax.data.raw.ids import same_ids
from gems_jax.data.raw.options import TableFiles
from gems_jax.data.raw.quarantine import Quarantine
from gems_jax.data.raw.raw_table import read_batches
from gems_jax.data.raw.source import Source
from gems_jax.data.sources.amazon import read_items
from gems_jax.data.sources.entry import SourceEntry
from gems_jax.data.sources.table import encode_batch, same_columns

FETCH = (
    "fetch <Category>.train.csv, <Category>.valid.csv and <Category>.test.csv of one split (last_out_w_his or "
    "timestamp_w_his have histories) and meta_<Category>.jsonl.gz by hand from https://amazon-reviews-2023.github.io, "
    "all into the folder that data.path names"
)
COLUMNS = {"user_id": "user_id", "target": "parent_asin", "timestamp": "timestamp", "history": "history"}
_ENDINGS = (".csv", ".csv.gz")
_META_ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".json.gz")


class Files(NamedTuple):
    """The files of a category: a table of each split, and the metadata."""

    tables: dict[str, Path]
    meta: Path


def raw_files(folder: Path, category: str | None) -> Files:
    """The files of a category.

    Raises:
      FileNotFoundError: one is missing; says which, from where, into what folder.
      ValueError: the folder holds several categories and none is named.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; {FETCH}")
    if category is None:
        found = sorted({path.name.split(".train.csv")[0] for path in folder.glob("*.train.csv*")})
        if len(found) > 1:
            raise ValueError(f"{folder} holds {', '.join(found)}; name one as data.category")
        category = found[0] if found else "<Category>"
    tables = {split: _file(folder, f"{category}.{split}", _ENDINGS) for split in SPLITS}
    return Files(tables, _file(folder, f"meta_{category}", _META_ENDINGS))


def _file(folder: Path, name: str, endings: tuple[str, ...]) -> Path:
    for ending in endings:
        if (folder / f"{name}{ending}").is_file():
            return folder / f"{name}{ending}"
    raise FileNotFoundError(f"{folder} holds no {name}{endings[0]}; {FETCH}")


def read(options: PrepareOptions, quarantine: Quarantine, cache: ReadCache) -> Source:
    """All rows with their splits, the items that occur, and a query for each item that has a category.

    Every row is a recommendation, and a search if its item has a query. Histories are those of the files; where these
    have none, they are made of the user's rows of the splits before.

    Args:
      options: of these the folder counts and, where it holds several categories, which.
      quarantine: takes bad rows.
      cache: keeps each file's rows, or has them already.
    """
    files = raw_files(options.folder, options.category)
    names = Names()
    # Ids of items have no spaces, and times are milliseconds also where they are few.
    reading = TableFiles(separators={"target": "", "history": " "}, time_format="ms")
    needed = tuple(role for role in COLUMNS if role != "history")

    def read_file(file: tuple[str, Path]) -> Examples | None:
        split, path = file
        batches = read_batches(path, COLUMNS, needed, quarantine)
        rows = [encode_batch(batch, names, reading, quarantine, split) for batch in batches]
        return Examples.join(rows) if rows else None

    blocks = list(cache.rows_of_each([*files.tables.items()], names, quarantine, read_file))
    total = sum(map(len, blocks))
    quarantine.check_usable("row", total, options.folder)
    if not total:
        raise ValueError(f"{options.folder} holds no row; {FETCH}")
    examples = same_ids(Examples.join(same_columns(blocks)), None, quarantine)
    items, queries = read_items(files.meta, set(examples.names.items.names), quarantine)
    return Source(
        "amazon_splits", str(options.folder), examples, items, per_task=False, query_of_item=queries, as_published=True
    )


SOURCE = SourceEntry(
    read=read,
    raw_files=lambda options: [
        *(files := raw_files(options.folder, options.category)).tables.values(),
        files.meta,
    ],
    takes=("category",),
)
