"""Amazon reviews of one category (2014, 2018 or 2023): purchases in order, item texts, queries by category."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gems_jax.data.dataset.tables import Item
from gems_jax.data.preparation.options import PrepareOptions
from gems_jax.data.preparation.read_cache import ReadCache
from gems_jax.data.raw import reasons
from gems_jax.data.raw.blank import unescaped_line
from gems_jax.data.raw.catalogue_file import add_item
from gems_jax.data.raw.columns import as_text, as_words
from gems_jax.data.raw.examples import Examples, Names
from gems_jax.data.raw.quarantine import Quarantine
from gems_jax.data.raw.ragged import Ragged
from gems_jax.data.raw.raw_rows import RawRows
from gems_jax.data.raw.raw_table import read_batches
from gems_jax.data.raw.source import Source
from gems_jax.data.raw.times import as_times
from gems_jax.data.sources.entry import SourceEntry
from gems_jax.data.text.plain_text import is_unicode
from gems_jax.data.text.words import split_words

FETCH = (
    "fetch the reviews and the metadata of a category by hand, from "
    "https://cseweb.ucsd.edu/~jmcauley/datasets.html (2014: reviews_<Category>_5.json.gz and meta_<Category>.json.gz; "
    "2018: <Category>_5.json.gz and meta_<Category>.json.gz) or https://amazon-reviews-2023.github.io (2023: "
    "<Category>.jsonl.gz or <Category>.csv.gz, and meta_<Category>.jsonl.gz), into the folder that data.path names"
)
# Left out of queries.
STOP_WORDS = frozenset(
    ["a", "amp", "an", "and", "at", "by", "for", "from", "in", "of", "on", "or", "the", "to", "with"]
)
_SUFFIXES = (".json", ".jsonl", ".csv")
# Roles to the columns' names, that of 2023 first: there ``parent_asin`` is the product, ``asin`` one of its variants.
_REVIEW = {"user": ("user_id", "reviewerID"), "item": ("parent_asin", "asin"), "time": ("timestamp", "unixReviewTime")}
_META = {
    "item": ("parent_asin", "asin"), "title": ("title",), "brand": ("store", "brand"), "features": ("features",),
    "paths": ("categories",), "path": ("category",),
}  # fmt: skip


class Files(NamedTuple):
    """The files of a category."""

    reviews: Path
    meta: Path


def raw_files(folder: Path, category: str | None) -> Files:
    """The files of reviews and of metadata.

    Raises:
      FileNotFoundError: one is missing; says which, from where, into what folder.
      ValueError: the folder holds several categories and none is named.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; {FETCH}")
    files = {name: path for path in sorted(folder.iterdir()) if (name := _stem(path)) is not None}
    metas = {name.removeprefix("meta_"): path for name, path in files.items() if name.startswith("meta_")}
    # Files of 2023 are called by the category alone.
    names = {name: files[name] for name in metas if name in files}
    names |= {
        name.removeprefix("reviews_").removesuffix("_5"): path for name, path in files.items() if name.endswith("_5")
    }
    if category is None:
        if len(names) > 1:
            raise ValueError(f"{folder} holds {', '.join(sorted(names))}; name one as data.category")
        category = next(iter(names), None)
    reviews = names.get(category or "")
    if reviews is None:
        wanted = f"reviews of {category}" if category else "reviews"
        if any(name.endswith(".train") for name in files):
            raise FileNotFoundError(f"{folder} holds no {wanted}, but a split; data.name: amazon_splits reads it")
        raise FileNotFoundError(f"{folder} holds no {wanted} (<Category>_5.json.gz or <Category>.jsonl.gz); {FETCH}")
    if category not in metas:
        raise FileNotFoundError(f"{folder} holds no meta_{category}.json.gz; {FETCH}")
    return Files(reviews, metas[category])


def _stem(path: Path) -> str | None:
    """The name of a table without its endings, None for other files."""
    name = path.name.removesuffix(".gz")
    return next((name.removesuffix(suffix) for suffix in _SUFFIXES if name.endswith(suffix)), None)


def read(options: PrepareOptions, quarantine: Quarantine, cache: ReadCache) -> Source:
    """Events, the items they are of, and a query for each item that has a category.

    Every event is a recommendation, and a search if its item has a query; the user's last event is test and the one
    before it valid, for both tasks alike.

    Args:
      options: of these the folder counts and, where it holds several categories, which.
      quarantine: takes bad rows.
      cache: none is kept.
    """
    reviews, meta = raw_files(options.folder, options.category)
    examples = read_events(reviews, quarantine)
    items, queries = read_items(meta, set(examples.names.items.names), quarantine)
    return Source("amazon", str(options.folder), examples, items, per_task=False, query_of_item=queries)


def read_events(path: Path, quarantine: Quarantine) -> Examples:
    """A row for each review."""
    names = Names()
    file = names.files.add(path.name)
    users, items, times, numbers = [], [], [], []
    for batch in _batches(path, _REVIEW, ("user", "item", "time"), quarantine, "event"):
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
    """The wanted items in the file's order, and the query of each that has one.

    An item's text is its brand, in 2023 its store and its features.
    """
    items: dict[str, Item] = {}
    queries = {}
    for batch in _batches(path, _META, ("item", "title"), quarantine, "item"):
        features = as_words(batch.columns["features"])[0].to_pylist() if "features" in batch.columns else None
        for row, item_id in enumerate(as_text(batch.columns["item"])[0].to_pylist()):
            if item_id not in wanted:
                continue
            entry = {role: column[row] for role, column in batch.columns.items()}
            text = f"{unescaped_line(entry.get('brand'))} {unescaped_line(features[row] if features else None)}".strip()
            item = Item(item_id, unescaped_line(entry["title"]), text)
            where = f"{path.name}: row {batch.numbers[row]}"
            problem = "" if item.title else reasons.NO_TITLE
            if not (is_unicode(item.title) and is_unicode(text)):
                problem = reasons.NO_UNICODE
            add_item(item, items, quarantine, where, problem, batch.raw(row))
            query = category_query(deepest_path(entry))
            if query and items.get(item_id) == item:
                queries[item_id] = query
    quarantine.check("item", len(items) + sum(row["kind"] == "item" for row in quarantine.rows), path)
    return list(items.values()), queries


def deepest_path(entry: dict[str, Any]) -> list[str]:
    """The category path with the most levels, the first of those: 2014 lists several, 2018 and 2023 have one."""
    paths = entry.get("paths")
    if not isinstance(paths, list):
        paths = [entry.get("path")]
    elif paths and all(isinstance(level, str) for level in paths):
        paths = [paths]
    paths = [[level for level in path if isinstance(level, str)] for path in paths if isinstance(path, list)]
    return max(paths, key=len, default=[])


def category_query(levels: Sequence[str]) -> str:
    """The words of a category path without its root, in any script, each once, where it stands last.

    The rule of Van Gysel, de Rijke, Kanoulas (arXiv 1608.07253) and of HEM (Ai, Zhang, Bi, Chen, Croft, SIGIR 2017):
    stop words and words that come again go; a path of one level is no query. The root goes too: it is the same for
    all items.

    Args:
      levels: names from the root down; HTML's escapes are undone.

    Returns:
      The query, empty where the path gives none.

    Example:
      >>> category_query(["Industrial & Scientific", "Fasteners", "Collated Fasteners", "Staples"])
      'collated fasteners staples'
      >>> category_query(["Haushalt", "K\u00fcchenger\u00e4te", "Wasserkocher"])
      'küchengeräte wasserkocher'
    """
    named = [level for level in levels if level.strip()]
    if len(named) < 2:
        return ""
    text = html.unescape(html.unescape(" ".join(named[1:]))).lower()
    words: dict[str, None] = {}
    for word in reversed(split_words(text)):
        if word not in STOP_WORDS:
            words.setdefault(word)
    return " ".join(reversed(words))


def _batches(
    path: Path, roles: Mapping[str, tuple[str, ...]], needed: tuple[str, ...], quarantine: Quarantine, kind: str
) -> Iterator[RawRows]:
    """Batches whose columns have the names of any year; a cell that is empty in the first of them is the next one's."""
    names = {name: name for choices in roles.values() for name in choices}
    for batch in read_batches(path, names, (), quarantine, kind):
        columns = {}
        for role, choices in roles.items():
            there = [batch.columns[name] for name in choices if name in batch.columns]
            if there:
                columns[role] = _first_of(there)
            elif role in needed:
                raise ValueError(
                    f"{path} has no column {' or '.join(map(repr, choices))}; it has "
                    f"{', '.join(map(repr, batch.names[:20]))}. If these are no Amazon reviews, data.name: table reads "
                    f"them; if they are, {FETCH}"
                )
        yield batch._replace(columns=columns)


def _first_of(columns: list[Any]) -> Any:
    if len(columns) == 1 or not isinstance(columns[0], list):
        return columns[0]
    return [first if first is not None else second for first, second in zip(*columns, strict=True)]


SOURCE = SourceEntry(
    read=read,
    raw_files=lambda options: raw_files(options.folder, options.category),
    defaults={"core": 5, "max_history": 20, "min_history": 1},
    takes=("category",),
)
