"""Amazon "Industrial & Scientific" (2018, 5-core): purchases in order, item texts, queries by category."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gems_jax.data.dataset.tables import Dataset, Item
from gems_jax.data.preparation.negatives import NUM_NEGATIVES
from gems_jax.data.preparation.splits import MIN_EVENTS, Event, leave_one_out
from gems_jax.data.raw.blank import unescaped_line
from gems_jax.data.raw.quarantine import Quarantine
from gems_jax.data.raw.raw_json import read_object, read_text
from gems_jax.data.sources.entry import SourceEntry
from gems_jax.data.text.plain_text import is_unicode

ITEMS_FILE = "Scientific.item.json"
INTERACTIONS_FILE = "Scientific.inter.json"
QUERIES_FILE = "queries.tsv"
FILES = (ITEMS_FILE, INTERACTIONS_FILE, QUERIES_FILE)
QUERY_COLUMN = "query_noroot"


def load(
    folder: str | Path, seed: int = 0, num_negatives: int = NUM_NEGATIVES, max_bad_fraction: float = 0.05
) -> Dataset:
    """Read the raw files into six tables (train, valid, test by rec, src).

    Items without a title, events with an item that is not in the catalogue, users with too few events and
    malformed entries are left out, counted in the card and listed in ``quarantined``.

    Args:
      folder: holds ``Scientific.item.json``, ``Scientific.inter.json`` and ``queries.tsv``.
      seed: of the negatives.
      num_negatives: per row of valid and test.
      max_bad_fraction: largest share of items, events, users or queries that may be left out.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: a file is not what it should be, or too much of it cannot be used.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; data.path must name the one that holds {ITEMS_FILE}")
    quarantine = Quarantine(max_bad_fraction)
    items = read_items(folder / ITEMS_FILE, quarantine)
    number = {item.item_id: position for position, item in enumerate(items)}
    queries = read_queries(folder / QUERIES_FILE, number, quarantine)
    events = read_events(folder / INTERACTIONS_FILE, number, queries, quarantine)
    same_query: dict[str, list[int]] = {}
    for item_id, query in queries.items():
        same_query.setdefault(query, []).append(number[item_id])
    tables = leave_one_out(events, [item.item_id for item in items], seed, num_negatives, same_query)
    dataset = Dataset("amazon_scientific", items, tables, {}, quarantine.rows)
    dataset.card.update(
        name=dataset.name,
        seed=seed,
        num_negatives=num_negatives,
        items=len(items),
        users=len(events),
        interactions=sum(map(len, events.values())),
        rows=dataset.row_counts(),
        quarantined=quarantine.counts(),
    )
    return dataset


def read_items(path: Path, quarantine: Quarantine) -> list[Item]:
    """The catalogue in the file's order; text is the brand. Categories stay out: queries come from them."""
    raw = read_object(path, "item", quarantine)
    malformed = len(quarantine.rows)
    items = []
    for item_id, entry in raw.items():
        if not isinstance(entry, dict):
            quarantine.add("item", item_id, "it is not an object", repr(entry))
            continue
        title, brand = unescaped_line(entry.get("title")), unescaped_line(entry.get("brand"))
        if not title:
            quarantine.add("item", item_id, "it has no title")
        elif not all(map(is_unicode, (item_id, title, brand))):
            quarantine.add("item", item_id, "its id, title or brand is no Unicode text", entry)
        else:
            items.append(Item(item_id, title, brand))
    quarantine.check("item", len(raw) + malformed, path)
    if not items:
        raise ValueError(f"{path} holds no item")
    return items


def read_queries(path: Path, known: Mapping[str, int], quarantine: Quarantine) -> dict[str, str]:
    """Item id to its query, for known items that have one."""
    lines = read_text(path).splitlines()
    header = lines[0].split("\t") if lines else []
    for column in ("item", QUERY_COLUMN):
        if column not in header:
            raise ValueError(f"{path} needs a header line with the tab-separated column {column!r}, found {header}")
    item_column, query_column = header.index("item"), header.index(QUERY_COLUMN)
    queries = {}
    for line_number, line in enumerate(lines[1:], start=2):
        cells = line.split("\t")
        if len(cells) != len(header):
            quarantine.add("query", f"line {line_number}", "the number of columns is wrong", line)
        elif cells[item_column] not in known:
            quarantine.add("query", f"line {line_number}", "its item is not in the catalogue", cells[item_column])
        elif cells[query_column].strip():
            queries[cells[item_column]] = cells[query_column].strip()
    quarantine.check("query", len(lines) - 1, path)
    return queries


def read_events(
    path: Path, known: Mapping[str, int], queries: Mapping[str, str], quarantine: Quarantine
) -> dict[str, list[Event]]:
    """User to events, oldest first."""
    raw = read_object(path, "user", quarantine)
    malformed = sum(row["kind"] == "user" for row in quarantine.rows)
    total_events = 0
    events: dict[str, list[Event]] = {}
    for user, entry in raw.items():
        if not isinstance(entry, list):
            quarantine.add("user", user, "it is not a list of items", repr(entry))
            continue
        if not is_unicode(user):
            quarantine.add("user", user, "its name is no Unicode text")
            continue
        total_events += len(entry)
        kept: dict[str, None] = {}
        for item_id in map(_item_id, entry):
            if item_id not in known:
                quarantine.add("event", f"user {user}", "its item is not in the catalogue", f"item {item_id}")
            elif item_id in kept:
                quarantine.add("event", f"user {user}", "the user took the item before", f"item {item_id}")
            else:
                kept[item_id] = None
        if len(kept) < MIN_EVENTS:
            quarantine.add("user", user, f"it has fewer than {MIN_EVENTS} events")
        else:
            events[user] = [Event(known[item_id], queries.get(item_id, "")) for item_id in kept]
    quarantine.check("event", total_events, path)
    quarantine.check("user", len(raw) + malformed, path)
    if not events:
        raise ValueError(f"{path} holds no user with at least {MIN_EVENTS} events")
    return events


def _item_id(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)


SOURCE = SourceEntry(
    load=lambda options: load(options.folder.resolve(), options.seed, options.num_negatives, options.max_bad_fraction),
    raw_files=lambda options: [file for file in options.folder.glob("*") if file.name in FILES],
)
