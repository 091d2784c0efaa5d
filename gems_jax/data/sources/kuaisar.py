"""KuaiSAR (arXiv 2306.07705): searches and recommendations of one video app, from its published CSV files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from gems_jax.data.dataset.tables import Item
from gems_jax.data.preparation.options import PrepareOptions
from gems_jax.data.preparation.read_cache import ReadCache
from gems_jax.data.raw.catalogue_file import add_item
from gems_jax.data.raw.columns import as_text
from gems_jax.data.raw.examples import Examples, Names
from gems_jax.data.raw.ids import same_ids, whole_id
from gems_jax.data.raw.options import TableFiles
from gems_jax.data.raw.quarantine import Quarantine
from gems_jax.data.raw.raw_rows import RawRows
from gems_jax.data.raw.raw_table import read_batches
from gems_jax.data.raw.source import Source
from gems_jax.data.sources.entry import SourceEntry
from gems_jax.data.sources.table import encode_batch

RECOMMENDATIONS, SEARCHES, VIDEOS = "rec_inter", "src_inter", "item_features"
FETCH = (
    "fetch KuaiSAR_v2.zip (or KuaiSAR.zip, the small one) from https://zenodo.org/record/8181109 and unpack it; name "
    f"the folder of {RECOMMENDATIONS}.csv, {SEARCHES}.csv and {VIDEOS}.csv as data.path"
)
PICKLES = (
    "it holds pickles, as UniSAR's authors publish their tables; a pickle is a program and none is run here. Where you "
    "trust them, write the rows as CSV or parquet yourself and read these as data.name: table (docs/data.md)"
)
# Other results of a search (users, live streams, ...) are never recommended.
ITEM_TYPES = ("VIDEO", "IMAGE_ATLAS")
_COLUMNS = {
    RECOMMENDATIONS: {"user_id": "user_id", "target": "item_id", "timestamp": "timestamp", "click": "click"},
    SEARCHES: {
        "user_id": "user_id", "target": "item_id", "timestamp": "search_session_timestamp", "click": "click_cnt",
        "query": "keyword", "type": "item_type",
    },
}  # fmt: skip
_LEVELS = tuple(f"{level}_level_category_name_en" for level in ("first", "second", "third", "fourth"))
_ITEM = {"item": "item_id", "caption": "caption"} | {level: level for level in _LEVELS}
# Names of levels that a video does not have.
_NO_LEVEL = ("", "empty", "unknown")


def raw_files(folder: Path) -> dict[str, Path]:
    """The three files that are read.

    Raises:
      FileNotFoundError: one is missing; says which, from where, into what folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; {FETCH}")
    files = {}
    for name in (RECOMMENDATIONS, SEARCHES, VIDEOS):
        there = [path for ending in (".csv", ".csv.gz") if (path := folder / f"{name}{ending}").is_file()]
        if not there:
            pickled = any(folder.glob("*.pkl")) or any(folder.glob("*/*.pkl"))
            raise FileNotFoundError(f"{folder} has no {name}.csv; {f'{PICKLES}. Or ' if pickled else ''}{FETCH}")
        files[name] = there[0]
    return files


def read(options: PrepareOptions, quarantine: Quarantine, cache: ReadCache) -> Source:
    """A row for each item that was clicked, and the items of these rows.

    Rows of both files are split anew, the last of each user and task for test. Queries and captions are the numbers
    that stand for words in the files.

    Args:
      options: of these the folder counts.
      quarantine: takes bad rows.
      cache: keeps each file's rows, or has them already.
    """
    files = raw_files(options.folder)
    names = Names()

    def read_file(table: str) -> Examples | None:
        return _read_clicks(files[table], table, names, quarantine)

    blocks = list(cache.rows_of_each([*_COLUMNS], names, quarantine, read_file))
    total = sum(map(len, blocks))
    quarantine.check_usable("row", total, options.folder)
    if not total:
        raise ValueError(f"{options.folder} holds no row with a click; {FETCH}")
    examples = same_ids(Examples.join(blocks), None, quarantine)
    items = read_videos(files[VIDEOS], set(examples.names.items.names), quarantine)
    return Source("kuaisar", str(options.folder), examples, items)


def _read_clicks(path: Path, table: str, names: Names, quarantine: Quarantine) -> Examples | None:
    """The usable rows of a file that led to a click; None where it has no row."""
    roles = _COLUMNS[table]
    needed = tuple(role for role in roles if role != "type")
    task = "rec" if table == RECOMMENDATIONS else "src"
    blocks = []
    for batch in read_batches(path, roles, needed, quarantine):
        clicked = _clicked(batch, roles["click"], quarantine)
        if "type" in batch.columns:
            clicked = _of_items(batch, clicked, quarantine)
        columns = {role: column for role, column in _kept(batch, clicked).items() if role not in ("click", "type")}
        if "query" in columns:
            columns["query"] = _words(columns["query"])
        columns["task"] = [task] * int(clicked.sum())
        rows = batch._replace(numbers=batch.numbers[clicked], columns=columns)
        blocks.append(encode_batch(rows, names, TableFiles(separators={"target": ""}, time_format="ms"), quarantine))
    return Examples.join(blocks) if blocks else None


def read_videos(path: Path, wanted: set[str], quarantine: Quarantine) -> list[Item]:
    """The wanted items in the file's order: the title is the English names of the categories, the text the caption."""
    items: dict[str, Item] = {}
    unnamed = 0
    for batch in read_batches(path, _ITEM, ("item",), quarantine, "item"):
        texts = {role: as_text(column)[0] for role, column in batch.columns.items()}
        captions = _words(texts["caption"]).to_pylist() if "caption" in texts else None
        levels = [texts[level].to_pylist() for level in _LEVELS if level in texts]
        for row, written in enumerate(texts["item"].to_pylist()):
            item_id = whole_id(written or "")
            if item_id not in wanted:
                continue
            named = [
                name for level in levels if (name := " ".join((level[row] or "").split())).lower() not in _NO_LEVEL
            ]
            unnamed += not named
            title = " > ".join(named) or f"video {item_id}"
            item = Item(item_id, title, (captions[row] or "") if captions else "")
            add_item(item, items, quarantine, f"{path.name}: row {batch.numbers[row]}")
    if unnamed:
        quarantine.remark("{n} items have no category with an English name; their titles are their ids", unnamed, "")
    quarantine.check("item", len(items) + sum(row["kind"] == "item" for row in quarantine.rows), path)
    return list(items.values())


def _clicked(batch: RawRows, name: str, quarantine: Quarantine) -> np.ndarray:
    """bool ``[R]``: rows with a click; a click that is no number makes a bad row."""
    import pyarrow as pa
    import pyarrow.compute as pc

    text = as_text(batch.columns["click"])[0]
    try:
        clicks = pc.cast(text, pa.float64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:
        clicks = np.asarray([_number(value) for value in text.to_pylist()])
    for row in np.flatnonzero(np.isnan(clicks)).tolist():
        where = f"{batch.path.name}: row {batch.numbers[row]}"
        quarantine.add("row", where, f"its {name} is no number", batch.raw(row))
    clicked = np.asarray(clicks > 0)
    idle = np.flatnonzero(clicks <= 0)
    if len(idle):
        where = f"row {batch.numbers[idle[0]]}"
        quarantine.remark(f"{{n}} rows of {batch.path.name} have no click and were left out", len(idle), where)
    return clicked


def _of_items(batch: RawRows, clicked: np.ndarray, quarantine: Quarantine) -> np.ndarray:
    """The rows with a click on what can be recommended, too."""
    types = as_text(batch.columns["type"])[0].to_pylist()
    other = clicked & np.asarray([kind not in ITEM_TYPES for kind in types], bool)
    if other.any():
        first = int(np.flatnonzero(other)[0])
        text = f"{{n}} rows of {batch.path.name} are clicks on neither {' nor '.join(ITEM_TYPES)} and were left out"
        quarantine.remark(text, int(other.sum()), f"row {batch.numbers[first]}, {types[first]!r}")
    return clicked & ~other


def _kept(batch: RawRows, rows: np.ndarray) -> dict[str, Any]:
    import pyarrow as pa

    mask = pa.array(rows)
    return {role: column.filter(mask) for role, column in batch.columns.items()}


def _words(column: Any) -> Any:
    """The numbers of a list as words: ``[20, 34, 3]`` as ``20 34 3``."""
    import pyarrow.compute as pc

    return pc.utf8_trim_whitespace(pc.replace_substring_regex(as_text(column)[0], r"[\[\],\s]+", " "))


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return float("nan")


SOURCE = SourceEntry(
    read=read,
    raw_files=lambda options: raw_files(options.folder).values(),
    defaults={"core": 5, "both_tasks": True, "max_history": 20},
)
