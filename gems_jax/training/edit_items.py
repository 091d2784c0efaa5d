"""Items that come to a tuned run's catalogue and go from it, without training: each edit kept, and undone again."""

import dataclasses
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from gems_jax.config.items import QUANTISERS
from gems_jax.config.run import Config
from gems_jax.data.dataset.tables import Item
from gems_jax.data.raw.catalogue_file import read_items
from gems_jax.data.raw.options import TableFiles
from gems_jax.data.raw.quarantine import Quarantine
from gems_jax.data.text.plain_text import plain_ids
from gems_jax.first_few import first_few
from gems_jax.items.tokens import read_identifiers
from gems_jax.staging import as_path, brought, check_writable, escaped, is_remote
from gems_jax.training.new_identifiers import identifiers_of
from gems_jax.training.run_assets import run_assets
from gems_jax.training.tuned import edited, edits_of
from gems_jax.training.workdir.assets import AssetRecord, check_record, item_digest, read_record, record_of
from gems_jax.training.workdir.copies import editing
from gems_jax.training.workdir.edits import NAME, CatalogueEdits, Edit, NewItem, write_edits

# Rows left out that an edit's lines show.
_SHOWN = 5


class Edited(NamedTuple):
    """An edit that was made.

    Args:
      edit: what was done.
      edits: all of them.
      moved: added items whose codes are not the nearest, or those brought for them, since another item has these.
      brought: whether codes of added items were brought.
    """

    edit: Edit
    edits: CatalogueEdits
    moved: int = 0
    brought: bool = False


def add_items(
    config: Config,
    workdir: str | os.PathLike[str],
    file: str,
    *,
    identifiers: str | None = None,
    columns: Mapping[str, str] | None = None,
    max_bad_fraction: float | None = None,
) -> Edited:
    """Adds the items of a file to the catalogue of a tuned run.

    They get identifiers of codes that the run was tuned with, none that another item has unless items may share them
    (``items.collisions: group``); items that were removed before, with the same title and text, come back under their
    own.

    Args:
      config: of the run.
      workdir: of the run, here or on an object store.
      file: a catalogue as ``prepare`` reads it: CSV, JSON or parquet with ``item_id``, ``title`` and perhaps ``text``.
      identifiers: JSON file of the items' identifiers, where those of the run came from such a file.
      columns: role to column, where a column is not named as its role.
      max_bad_fraction: largest share of the rows that may be left out; ``None``: ``data.max_bad_fraction`` of the run.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: an item is known already, too many rows cannot be used, identifiers are missing or cannot be used, or
        an item is new and the run's items have a token each.
    """
    made = config.items.identifiers in (None, *QUANTISERS)
    if made and identifiers is not None:
        kind = config.items.identifiers or "tokens"
        raise ValueError(f"this run makes identifiers by {kind}, of new items, too: leave --identifiers out")
    if identifiers is not None and is_remote(identifiers):
        raise ValueError(f"--identifiers {identifiers} is no path on this machine: name a copy here")
    check_writable(workdir, "--workdir", stores=True)
    with editing(workdir) as folder, brought(file) as here:
        record, edits = _known(folder)
        quarantine = Quarantine(config.data.max_bad_fraction if max_bad_fraction is None else max_bad_fraction)
        files = dataclasses.replace(config.data.files or TableFiles(), items=here.name)
        if columns:
            files = dataclasses.replace(files, item_columns=dict(columns))
        items = read_items(here.parent, files, quarantine)
        returned = _returned(items, record, edits)
        new = [item for item in items if item.item_id not in returned]
        if identifiers is not None:
            _check_own(identifiers, returned, record, edits)
        added, moved = [], 0
        if new:
            _check_addable(config, identifiers)
            base, assets, _ = run_assets(config, folder, tuned=True)
            check_record(record_of(config, assets, training=False), folder)
            new = _readable(new, assets.tokenizer, quarantine, len(items), file)
            tokens, moved = identifiers_of(config, edited(assets, edits), base, new, identifiers)
            added = [NewItem.of(item, each) for item, each in zip(new, tokens, strict=True)]
        edit = Edit(_now(), escaped(here.name), tuple(added), tuple(returned), left_out=tuple(quarantine.rows))
        edits = dataclasses.replace(edits, edits=(*edits.edits, edit))
        if added:
            edited(assets, edits)  # no identifier twice, and no token that is unknown
        write_edits(edits, folder)
    return Edited(edit, edits, moved, identifiers is not None)


def remove_items(workdir: str | os.PathLike[str], item_ids: Sequence[str]) -> Edited:
    """Takes items out of the catalogue of a tuned run: they are ranked no more, and stay known in histories.

    Args:
      workdir: of the run, here or on an object store.
      item_ids: of items that are ranked.

    Raises:
      ValueError: an id is unknown or removed already, or no item would be left.
    """
    check_writable(workdir, "--workdir", stores=True)
    item_ids = list(dict.fromkeys(item_ids))
    if not item_ids:
        raise ValueError("items remove needs ids of items, or --ids FILE")
    with editing(workdir) as folder:
        record, edits = _known(folder)
        gone = edits.removed()
        there = {*record.items, *(one.item_id for one in edits.added())}
        _refuse([one for one in item_ids if one not in there], "the catalogue has no item {}")
        _refuse([one for one in item_ids if one in gone], "{} removed already")
        if len(item_ids) == len(there) - len(gone):
            raise ValueError(f"these are all {len(item_ids):,} items that are ranked: one at least must stay")
        edit = Edit(_now(), removed=tuple(item_ids))
        edits = dataclasses.replace(edits, edits=(*edits.edits, edit))
        write_edits(edits, folder)
    return Edited(edit, edits)


def undo_edit(workdir: str | os.PathLike[str]) -> Edited:
    """Undoes the last edit of a tuned run's catalogue.

    Raises:
      ValueError: there is none.
    """
    check_writable(workdir, "--workdir", stores=True)
    with editing(workdir) as folder:
        edits = edits_of(folder)
        if not edits.edits:
            raise ValueError(f"the catalogue of {workdir} was not edited since training: there is nothing to undo")
        *before, last = edits.edits
        edits = dataclasses.replace(edits, edits=tuple(before))
        write_edits(edits, folder)
    return Edited(last, edits)


def _check_addable(config: Config, identifiers: str | None) -> None:
    """Raises unless new items can have identifiers."""
    kind = config.items.identifiers
    if kind is None:
        raise ValueError(
            "items of this run have a token each (items.identifiers: tokens), and a new item's would be one that was "
            "never trained: nothing sound can be said of its rank. Tune a run whose items share tokens "
            "(items.identifiers: rkmeans), to which items can be added without training"
        )
    if kind not in QUANTISERS and identifiers is None:
        raise ValueError(
            f"identifiers of this run are from a file ({kind}), not made of texts: give those of the new items by "
            "--identifiers FILE, of the same form and the same tokens"
        )


def _known(workdir: Path) -> tuple[AssetRecord, CatalogueEdits]:
    """What a run was tuned with, and the edits since."""
    record = read_record(workdir)
    if record is None:
        raise ValueError(
            f"{workdir} has no assets.json, since an older version tuned it: which items it was tuned with is not "
            "known; gems-jax train writes the file"
        )
    return record, edits_of(workdir)


def _returned(items: Sequence[Item], record: AssetRecord, edits: CatalogueEdits) -> dict[str, None]:
    """Ids of items that were removed before and come back.

    Raises:
      ValueError: an item is there, or comes back as another.
    """
    gone = edits.removed()
    digests = record.items | {one.item_id: item_digest(one.item) for one in edits.added()}
    there = [item.item_id for item in items if item.item_id in digests and item.item_id not in gone]
    _refuse(there, "the catalogue has {} already: take them out of the file (an item's title cannot be changed here)")
    back = [item for item in items if item.item_id in gone]
    _refuse(
        [item.item_id for item in back if digests[item.item_id] != item_digest(item)],
        "{} removed before, with another title or text: an item comes back as it was, or under another id",
    )
    return dict.fromkeys(item.item_id for item in back)


def _check_own(path: str, returned: Iterable[str], record: AssetRecord, edits: CatalogueEdits) -> None:
    """Raises where a file gives items that come back other identifiers than they have."""
    given = read_identifiers(path)
    own = record.identifiers | {one.item_id: "".join(one.tokens) for one in edits.added()}
    for item_id in returned:
        if item_id in given and "".join(given[item_id]) != own[item_id]:
            raise ValueError(
                f"{path}: item {item_id!r} comes back under its own identifier {own[item_id]}, and the file gives it "
                f"{''.join(given[item_id])}: leave it out of the file"
            )


def _readable(items: Sequence[Item], tokenizer: object, quarantine: Quarantine, total: int, file: str) -> list[Item]:
    """The items whose titles the model can read; the others go into the quarantine."""
    tokens = plain_ids([item.title for item in items], tokenizer)
    for item, ids in zip(items, tokens, strict=True):
        if not ids:
            quarantine.add("item", f"item {item.item_id}", "the tokenizer finds no token in its title", vars(item))
    bad = sum(row["kind"] == "item" for row in quarantine.rows)
    quarantine.check("item", max(total, bad), file)
    kept = [item for item, ids in zip(items, tokens, strict=True) if ids]
    if not kept:
        raise ValueError(f"{file}: no item is left to add")
    return kept


def _refuse(ids: Sequence[str], message: str) -> None:
    """Raises where there are ids, of which the first stand in the message."""
    if ids:
        raise ValueError(message.format(first_few(map(repr, ids))))


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def ids_of(words: Iterable[str], file: str | None) -> list[str]:
    """Ids of items: words, and the lines of a file.

    Raises:
      FileNotFoundError: there is no such file.
    """
    lines: list[str] = []
    if file is not None:
        if not as_path(file).is_file():
            raise FileNotFoundError(f"--ids {file} does not exist: write an id a line into it")
        lines = [line.strip() for line in as_path(file).read_text(encoding="utf-8").splitlines()]
    return [*words, *(line for line in lines if line)]


def edit_lines(done: Edited, undone: bool = False) -> list[str]:
    """What an edit has done, in a few lines.

    Args:
      done: the edit.
      undone: whether it was undone.
    """
    edit = done.edit
    lines = [f"items: {'undone: ' if undone else ''}{edit.line()}"]
    if done.moved:
        what = "those in --identifiers" if done.brought else "the nearest"
        lines.append(f"items: {done.moved:,} have other codes than {what}, which other items have")
    shown = edit.left_out[:_SHOWN] if not undone else ()
    lines += [f"items: left out: {row['id']}: {row['reason']}" for row in shown]
    return [*lines, f"items: {done.edits.notice() or 'the catalogue is that of training again'}"]


def lines_of(edits: CatalogueEdits, workdir: Path) -> list[str]:
    """The edits, oldest first, and what they come to."""
    if not edits.edits:
        return [f"the catalogue of {workdir} was not edited since training"]
    return [*(edit.line() for edit in edits.edits), f"{edits.notice()} ({workdir / NAME})"]
