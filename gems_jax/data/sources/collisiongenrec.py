"""CollisionGenRec (CIKM 2026): each user's items in order, the last one test and the one before it valid."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from gems_jax.data.preparation.holdout import TEST, TRAIN, VALID
from gems_jax.data.preparation.options import PrepareOptions
from gems_jax.data.preparation.read_cache import ReadCache
from gems_jax.data.raw.columns import id_text
from gems_jax.data.raw.examples import Examples, Names
from gems_jax.data.raw.ids import KnownIds, same_ids
from gems_jax.data.raw.item_objects import find_catalogue, read_item_objects
from gems_jax.data.raw.quarantine import Quarantine
from gems_jax.data.raw.ragged import Ragged
from gems_jax.data.raw.raw_json import read_object
from gems_jax.data.raw.source import Source
from gems_jax.data.sources.entry import SourceEntry

FETCH = (
    "fetch data/<NAME> (Beauty, Cell, Scientific or Yelp) of https://github.com/Nishikata97/CollisionGenRec by hand: "
    "<NAME>.inter.json and <NAME>.item.json; name the folder that holds them as data.path, or data with the name as "
    "data.category"
)


class Files(NamedTuple):
    """The files of a dataset."""

    users: Path
    items: Path


def raw_files(folder: Path, category: str | None) -> Files:
    """The files of a dataset.

    Raises:
      FileNotFoundError: one is missing; says which and how to get it.
      ValueError: there are several datasets and none is named.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; {FETCH}")
    name, items = find_catalogue([folder, *([folder / category] if category else [])], category, FETCH)
    users = items.with_name(f"{name}.inter.json")
    if not users.is_file():
        raise FileNotFoundError(f"{users.parent} holds no {users.name}; {FETCH}")
    return Files(users, items)


def read(options: PrepareOptions, quarantine: Quarantine, cache: ReadCache) -> Source:
    """An event for each item of each user, with its split, and the whole catalogue; there are no searches.

    A user's first item is in histories alone.

    Args:
      options: of these the folder counts and, where it holds several datasets, which.
      quarantine: takes bad users and events.
      cache: none is kept.
    """
    files = raw_files(options.folder, options.category)
    items = read_item_objects(files.items, quarantine)
    catalogue = KnownIds(item.item_id for item in items)
    examples = same_ids(read_events(files.users, catalogue, quarantine), catalogue, quarantine)
    return Source(
        "collisiongenrec", str(options.folder), examples, items, per_task=False, used_only=False, as_published=True
    )


def read_events(path: Path, known: KnownIds, quarantine: Quarantine) -> Examples:
    """Events in the order of the file; the time of one is its place in its user's list.

    Items that are not in the catalogue are left out first, so that the split is of what is left.
    """
    import pyarrow as pa

    raw = read_object(path, "user", quarantine)
    malformed = sum(row["kind"] == "user" for row in quarantine.rows)
    users: list[str] = []
    events: list[list[str]] = []
    total = 0
    for name, entry in raw.items():
        user = id_text(name)
        if not user:
            quarantine.add("user", f"{path.name}: user {name!r}", "its name is no text")
        elif not isinstance(entry, list) or not entry:
            quarantine.add("user", f"{path.name}: user {user}", "it is not a list of items", repr(entry))
        else:
            total += len(entry)
            found = [known.find(text) if (text := id_text(value)) else None for value in entry]
            for place in (place for place, item in enumerate(found) if item is None):
                where = f"{path.name}: user {user}, item {place + 1} of the list"
                quarantine.add("event", where, "its item is not in the catalogue", repr(entry[place]))
            users.append(user)
            events.append([item for item in found if item is not None])
    quarantine.check("event", total, path)
    quarantine.check("user", len(raw) + malformed, path)
    names = Names()
    targets = names.items.encode(pa.array([item for row in events for item in row], pa.string()))
    if not len(targets):
        raise ValueError(f"{path} holds no event; {FETCH}")
    lengths = np.asarray([len(row) for row in events])
    places = np.concatenate([np.arange(length) for length in lengths])
    from_end = np.repeat(lengths, lengths) - places
    count = len(targets)
    user = np.repeat(names.users.encode(pa.array(users, pa.string())), lengths)
    return Examples(
        names, user, np.full(count, names.tasks.get("rec"), np.int32), np.full(count, -1, np.int32),
        places.astype(np.float64), np.select([from_end == 1, from_end == 2], [TEST, VALID], TRAIN).astype(np.int8),
        Ragged(targets, np.arange(count + 1)), np.full(count, names.files.add(path.name), np.int32),
        np.arange(1, count + 1),
    )  # fmt: skip


SOURCE = SourceEntry(
    read=read,
    raw_files=lambda options: raw_files(options.folder, options.category),
    # The authors' length of histories.
    defaults={"max_history": 20, "min_history": 1},
    takes=("category",),
)
