"""Amazon reviews of one category (2014 or 2018): purchases in order, item texts, queries by category."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import numpy as np

from gems_jax.data.assemble import Source
from gems_jax.data.category_query import category_query
from gems_jax.data.columns import as_text, as_times
from gems_jax.data.examples import Examples, Names
from gems_jax.data.options import Steps
from gems_jax.data.plain_text import is_unicode
from gems_jax.data.quarantine import Quarantine
from gems_jax.data.ragged import Ragged
from gems_jax.data.raw_table import read_batches
from gems_jax.data.tables import Item

DEFAULTS = {"core": 5, "max_history": 20, "min_history": 1}
FETCH = (
    "fetch the 5-core reviews and the metadata of a category by hand, from "
    "https://cseweb.ucsd.edu/~jmcauley/datasets.html (2014: reviews_<Category>_5.json.gz and meta_<Category>.json.gz; "
    "2018: <Category>_5.json.gz and meta_<Category>.json.gz), into the folder that data.path names"
)
_REVIEW = {"user": "reviewerID", "item": "asin", "time": "unixReviewTime"}
_META = {"item": "asin", "title": "title", "brand": "brand", "paths": "categories", "path": "category"}


def raw_files(folder: Path, category: str | None) -> tuple[Path, Path]:
    """The files of reviews and of metadata.

    Raises:
        FileNotFoundError: one is missing; says which, from where, into what folder.
        ValueError: the folder holds several categories and none is named.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; {FETCH}")
    found = {
        name: path
        for path in sorted(folder.iterdir())
        if (name := path.name.removesuffix(".gz").removesuffix(".json").removesuffix(".jsonl")).endswith("_5")
    }
    names = {name.removeprefix("reviews_").removesuffix("_5"): path for name, path in found.items()}
    if category is None:
        if len(names) > 1:
            raise ValueError(f"{folder} holds {', '.join(names)}; name one as data.category")
        category = next(iter(names), None)
    reviews = names.get(category or "")
    if reviews is None:
        wanted = f"reviews of {category}" if category else "reviews"
        raise FileNotFoundError(f"{folder} holds no 5-core {wanted} (<Category>_5.json.gz); {FETCH}")
    for suffix in (".json.gz", ".jsonl.gz", ".json", ".jsonl"):
        meta = folder / f"meta_{category}{suffix}"
        if meta.is_file():
            return reviews, meta
    raise FileNotFoundError(f"{folder} holds no meta_{category}.json.gz; {FETCH}")


def read(folder: Path, category: str | None, steps: Steps, quarantine: Quarantine) -> tuple[Source, Steps]:
    """Events, the items they are of, and a query for each item that has a category.

    Every event is a recommendation, and a search if its item has a query; the user's last event is test and the one
    before it valid, for both tasks alike.

    Args:
        folder: of the raw files.
        category: which, where the folder holds several.
        steps: options; the defaults are a 5-core and histories of 1 to 20 events.
        quarantine: takes bad rows.
    """
    reviews, meta = raw_files(folder, category)
    examples = read_events(reviews, quarantine)
    items, queries = read_items(meta, set(examples.names.items.names), quarantine)
    steps = steps.with_defaults(**DEFAULTS)
    return Source("amazon", str(folder), examples, items, per_task=False, query_of_item=queries), steps


def read_events(path: Path, quarantine: Quarantine) -> Examples:
    """A row for each review."""
    names = Names()
    file = names.files.add(path.name)
    users, items, times, numbers = [], [], [], []
    for batch in read_batches(path, _REVIEW, ("user", "item", "time"), quarantine, "event"):
        user, item = (as_text(batch.columns[role])[0] for role in ("user", "item"))
        time, absurd = as_times(batch.columns["time"])
        nameless = np.asarray(user.is_null()) | np.asarray(item.is_null())
        bad = nameless | absurd | np.isnan(time)
        for row in np.flatnonzero(bad).tolist():
            reason = "it has no user or no item" if nameless[row] else "its time is none between 1970 and 2100"
            quarantine.add("event", f"{path.name}: row {batch.numbers[row]}", reason, batch.raw(row))
        users.append(names.users.encode(user.filter(~bad)))
        items.append(names.items.encode(item.filter(~bad)))
        times.append(time[~bad])
        numbers.append(batch.numbers[~bad])
    if not any(map(len, users)):
        raise ValueError(f"{path} holds no review; {FETCH}")
    user = np.concatenate(users)
    count = len(user)
    quarantine.check("event", count + sum(row["kind"] == "event" for row in quarantine.rows), path)
    targets = Ragged(np.concatenate(items), np.arange(count + 1))
    rec = np.full(count, names.tasks.get("rec"), np.int32)
    none = np.full(count, -1, np.int32)
    return Examples(
        names, user, rec, none, np.concatenate(times), none.astype(np.int8), targets,
        np.full(count, file, np.int32), np.concatenate(numbers),
    )  # fmt: skip


def read_items(path: Path, wanted: set[str], quarantine: Quarantine) -> tuple[list[Item], dict[str, str]]:
    """The wanted items in the file's order, and the query of each that has one. Text is the brand."""
    items: dict[str, Item] = {}
    queries = {}
    for batch in read_batches(path, _META, ("item", "title"), quarantine, "item"):
        for row, item_id in enumerate(as_text(batch.columns["item"])[0].to_pylist()):
            if item_id not in wanted:
                continue
            entry = {role: column[row] for role, column in batch.columns.items()}
            title, brand = _clean(entry["title"]), _clean(entry.get("brand"))
            reason = "there is an item of this id already" if item_id in items else "" if title else "it has no title"
            if not reason and not (is_unicode(title) and is_unicode(brand)):
                reason = "its title or brand is no Unicode text"
            if reason:
                quarantine.add("item", f"{path.name}: row {batch.numbers[row]}", reason, batch.raw(row))
                continue
            items[item_id] = Item(item_id, title, brand)
            query = category_query(deepest_path(entry))
            if query:
                queries[item_id] = query
    quarantine.check("item", len(items) + sum(row["kind"] == "item" for row in quarantine.rows), path)
    return list(items.values()), queries


def deepest_path(entry: dict[str, Any]) -> list[str]:
    """The category path with the most levels, the first of those: 2014 lists several, 2018 has one."""
    paths = entry.get("paths")
    if not isinstance(paths, list):
        paths = [entry.get("path")]
    paths = [[level for level in path if isinstance(level, str)] for path in paths if isinstance(path, list)]
    return max(paths, key=len, default=[])


def _clean(value: Any) -> str:
    """Unescaped (some fields are escaped twice) and with single spaces; anything but text counts as empty."""
    return " ".join(html.unescape(html.unescape(value)).split()) if isinstance(value, str) else ""
