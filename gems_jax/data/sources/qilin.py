"""Qilin (arXiv 2503.00501): searches and recommendations of one app, from its published files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gems_jax.data.dataset.tables import Item
from gems_jax.data.preparation.options import PrepareOptions
from gems_jax.data.preparation.read_cache import ReadCache
from gems_jax.data.raw.cells import parse_cell
from gems_jax.data.raw.columns import as_text, id_text
from gems_jax.data.raw.examples import UNKNOWN, Examples, Names
from gems_jax.data.raw.id_lists import as_lists
from gems_jax.data.raw.ids import same_ids, whole_id
from gems_jax.data.raw.quarantine import Quarantine
from gems_jax.data.raw.ragged import Ragged
from gems_jax.data.raw.raw_files import kind_of
from gems_jax.data.raw.raw_rows import RawRows
from gems_jax.data.raw.raw_table import read_batches
from gems_jax.data.raw.source import Source
from gems_jax.data.raw.times import as_times
from gems_jax.data.sources.entry import SourceEntry

PARTS = ("recommendation_train", "recommendation_test", "search_train", "search_test")
NOTES = "notes"
FETCH = (
    "fetch it by hand from https://huggingface.co/datasets/THUIR/Qilin into the folder that data.path names: the "
    f"folders {', '.join((*PARTS, NOTES))} with their parquet files as they are, or one CSV file of each name"
)
TITLE_LENGTH = 80
_ROLES = {"user": "user_idx", "history": "recent_clicked_note_idxs", "query": "query"}
_DETAILS = {"recommendation": "rec_result_details_with_idx", "search": "search_result_details_with_idx"}
_TIMES = ("request_timestamp", "search_timestamp", "timestamp")
_NOTE = {"item": "note_idx", "title": "note_title", "content": "note_content"}


def raw_files(folder: Path) -> dict[str, list[Path]]:
    """The files of each part: a folder's, or a file of the part's name.

    Raises:
      FileNotFoundError: a part is missing; says which, from where, into what folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; {FETCH}")
    files = {}
    for part in (*PARTS, NOTES):
        candidates = [*(folder / part).glob("*"), *folder.glob(f"{part}.*"), *folder.glob(f"{part}-*")]
        files[part] = sorted(path for path in candidates if path.is_file() and kind_of(path))
        if not files[part]:
            raise FileNotFoundError(f"{folder} has no {part} (a folder of parquet files, or {part}.csv); {FETCH}")
    return files


def read(options: PrepareOptions, quarantine: Quarantine, cache: ReadCache) -> Source:
    """Requests with what was clicked, and the notes that occur.

    Published training and test files are joined and split anew, the last request of each task for test. Histories
    are the clicks that the files list before each request.

    Args:
      options: of these the folder counts.
      quarantine: takes bad rows.
      cache: keeps each file's rows, or has them already.
    """
    folder = options.folder
    files = raw_files(folder)
    names = Names()
    kinds_and_paths = [(part.split("_")[0], path) for part in PARTS for path in files[part]]

    def read_file(file: tuple[str, Path]) -> Examples | None:
        kind, path = file
        return read_requests(path, kind, names, quarantine)

    total, clicked = 0, []
    for rows in cache.rows_of_each(kinds_and_paths, names, quarantine, read_file):
        total += len(rows)
        # A request without a click is neither a target nor a history.
        clicked.append(rows.take(rows.targets.lengths > 0))
    quarantine.check_usable("row", total, folder)
    if not total:
        raise ValueError(f"{folder} holds no request; {FETCH}")
    examples = same_ids(Examples.join(clicked), None, quarantine)
    items = read_notes(files[NOTES], examples, quarantine)
    return Source("qilin", str(folder), examples, items)


def read_requests(path: Path, kind: str, names: Names, quarantine: Quarantine) -> Examples | None:
    """The usable requests of one file, ``recommendation`` or ``search``; None where it has no rows."""
    roles = _ROLES | {"details": _DETAILS[kind]}
    needed = ("user", "history", "details") + (("query",) if kind == "search" else ())
    blocks = [
        encode_requests(batch, names, kind, quarantine) for batch in read_batches(path, roles, needed, quarantine)
    ]
    return Examples.join(blocks) if blocks else None


def encode_requests(batch: RawRows, names: Names, kind: str, quarantine: Quarantine) -> Examples:
    """The usable requests of a batch as numbers; clicked notes are targets, the others were shown."""
    texts = {role: as_text(batch.columns[role]) for role in ("user", "query") if role in batch.columns}
    history, history_items, bad_history = as_lists(batch.columns["history"])
    users = texts["user"][0].to_pylist()
    queries: list[str | None] = texts["query"][0].to_pylist() if kind == "search" else [None] * len(users)
    times: list[Any] = []
    clicked, shown, rows = [], [], []
    for row, details in enumerate(_details(batch.columns["details"])):
        problem = "the results cannot be read" if details is None else ""
        if not users[row]:
            problem = "the user is missing"
        elif bad_history[row]:
            problem = "the history cannot be read as item ids"
        elif kind == "search" and not queries[row]:
            problem = "the query is empty"
        if problem or details is None:
            quarantine.add("row", _where(batch, row), problem, batch.raw(row))
            for note in [note for note, click in _notes(details or []) if click and queries[row]]:
                names.left_out.add((_query(queries[row], names), names.items.add(note)))
            continue
        rows.append(row)
        times.append(_time(details))
        clicks = [note for note, click in _notes(details) if click]
        clicked.append(list(dict.fromkeys(clicks)))
        # A note that was clicked several times is one target; the other clicks count as events all the same.
        again = list((Counter(clicks) - Counter(clicked[-1])).elements())
        shown.append([note for note, click in _notes(details) if not click] + again)
    seconds, absurd = as_times(times)
    bad = absurd | np.isnan(seconds)
    for position in np.flatnonzero(bad).tolist():
        quarantine.add(
            "row", _where(batch, rows[position]), "its time is none between 1970 and 2100", batch.raw(rows[position])
        )
    index = np.asarray(rows, np.int64)
    keep = history.take(index)
    query = np.asarray([_query(queries[row], names) for row in rows], np.int32)
    targets = _numbers(clicked, names)
    names.left_out.add_rows(query, targets, bad)
    task = names.tasks.get("src" if kind == "search" else "rec")
    return Examples(
        names,
        names.users.encode(texts["user"][0].take(index)),
        np.full(len(index), task, np.int32),
        query,
        seconds,
        np.full(len(index), -1, np.int8),
        targets,
        np.full(len(index), names.files.add(f"{batch.path.parent.name}/{batch.path.name}"), np.int32),
        batch.numbers[index],
        history=Ragged(names.items.encode(history_items.take(keep.values)), keep.offsets),
        shown=_numbers(shown, names),
    ).take(~bad)


def read_notes(paths: list[Path], examples: Examples, quarantine: Quarantine) -> list[Item]:
    """The notes that occur, in the files' order; a note without a title has the beginning of its content for one."""
    wanted = set(examples.names.items.names)
    items: dict[str, Item] = {}
    for path in paths:
        for batch in read_batches(path, _NOTE, ("item", "title"), quarantine, "item"):
            texts = {role: as_text(column)[0] for role, column in batch.columns.items()}
            for row, written in enumerate(texts["item"].to_pylist()):
                item_id = whole_id(written or "")
                if item_id not in wanted or item_id in items:
                    continue
                content = " ".join((texts["content"][row].as_py() or "").split()) if "content" in texts else ""
                title = " ".join((texts["title"][row].as_py() or "").split()) or content[:TITLE_LENGTH]
                if title:
                    items[item_id] = Item(item_id, title, content[: 4 * TITLE_LENGTH])
                else:
                    quarantine.add("item", _where(batch, row), "it has neither title nor content", batch.raw(row))
    quarantine.check("item", len(items) + sum(row["kind"] == "item" for row in quarantine.rows), paths[0].parent)
    return list(items.values())


def _details(column: Any) -> Iterator[list[dict[str, Any]] | None]:
    """The list of results of every row, None where a cell is none."""
    values = column if isinstance(column, list) else column.to_pylist()
    for value in values:
        if isinstance(value, bytes | str):
            try:
                value = parse_cell(value.decode("utf-8") if isinstance(value, bytes) else value)
            except ValueError:
                value = None
        yield value if isinstance(value, list) and all(map(_is_result, value)) else None


def _is_result(entry: Any) -> bool:
    return isinstance(entry, dict) and bool(id_text(entry.get("note_idx")))


def _notes(details: list[dict[str, Any]]) -> Iterator[tuple[str, bool]]:
    for entry in details:
        yield id_text(entry["note_idx"]), entry.get("click") in (1, 1.0, True)


def _time(details: list[dict[str, Any]]) -> Any:
    """The time of the last result, as in the authors' processing; requests are in milliseconds, searches in seconds."""
    times = [entry[name] for entry in details for name in _TIMES if entry.get(name) is not None]
    return times[-1] if times else None


def _query(text: str | None, names: Names) -> int:
    return names.queries.add(" ".join(text.split())) if text else UNKNOWN


def _numbers(rows: list[list[str]], names: Names) -> Ragged:
    return Ragged.of([[names.items.add(note) for note in row] for row in rows])


def _where(batch: RawRows, row: int) -> str:
    return f"{batch.path.parent.name}/{batch.path.name}: row {batch.numbers[row]}"


SOURCE = SourceEntry(
    read=read,
    raw_files=lambda options: [file for files in raw_files(options.folder).values() for file in files],
    # The authors': users of both tasks with at least 3 requests each, a 3-core.
    defaults={"core": 3, "min_rows": 3, "both_tasks": True, "max_history": 20},
)
