"""What was added to a tuned run's catalogue and removed from it, edit after edit: a file beside its checkpoints."""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gems_jax.data.dataset.tables import Item
from gems_jax.first_few import first_few
from gems_jax.training.workdir.sealed import read_sealed, write_sealed

NAME = "catalogue_edits.json"
FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True)
class NewItem:
    """An item that was added.

    Attributes:
      item_id, title, text: of the catalogue file.
      tokens: of its identifier.
    """

    item_id: str
    title: str
    text: str
    tokens: tuple[str, ...]

    @classmethod
    def of(cls, item: Item, tokens: tuple[str, ...]) -> "NewItem":
        """An item with its identifier."""
        return cls(item.item_id, item.title, item.text, tokens)

    @property
    def item(self) -> Item:
        """The item as a catalogue has it."""
        return Item(self.item_id, self.title, self.text)


@dataclasses.dataclass(frozen=True)
class Edit:
    """One change of the catalogue.

    Attributes:
      when: in UTC, ``2026-11-30T04:05:06Z``.
      source: name of the file that items came from; empty for a removal.
      added: items that were not known.
      returned: ids of items that had been removed and are ranked again.
      removed: ids of items that are ranked no more.
      left_out: rows of the file that could not be used, each with its ``id`` and ``reason``.
    """

    when: str
    source: str = ""
    added: tuple[NewItem, ...] = ()
    returned: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    left_out: tuple[dict[str, str], ...] = ()

    def line(self) -> str:
        """What was done, in a line.

        Example:
          >>> Edit("2026-11-30T04:05:06Z", removed=("B01", "B02")).line()
          '2026-11-30T04:05:06Z  removed 2 (B01, B02)'
        """
        done = {"added": [one.item_id for one in self.added], "brought back": self.returned, "removed": self.removed}
        parts = [f"{what} {len(ids):,} ({first_few(ids)})" for what, ids in done.items() if ids]
        if self.left_out:
            reasons = Counter(row["reason"] for row in self.left_out).most_common()
            parts.append(f"left out {len(self.left_out):,} rows ({', '.join(f'{n:,}: {why}' for why, n in reasons)})")
        return f"{self.when}  {'; '.join(parts)}" + (f"  from {self.source}" if self.source else "")


@dataclasses.dataclass(frozen=True)
class CatalogueEdits:
    """All edits of a run's catalogue since it was tuned, oldest first.

    Attributes:
      run: digest of the items and identifiers that they change.
      edits: of which each can be undone, the last one first.
    """

    run: str
    edits: tuple[Edit, ...] = ()

    def added(self) -> list[NewItem]:
        """Items that the run was not tuned with, in the order they came, removed ones among them."""
        return [one for edit in self.edits for one in edit.added]

    def removed(self) -> frozenset[str]:
        """Ids of items that are known and ranked no more."""
        gone: set[str] = set()
        for edit in self.edits:
            gone = (gone - set(edit.returned)) | set(edit.removed)
        return frozenset(gone)

    def counts(self) -> tuple[int, int]:
        """Items that are ranked and were not in training, and items of training that are ranked no more."""
        new, gone = {one.item_id for one in self.added()}, self.removed()
        return len(new - gone), len(gone - new)

    def notice(self) -> str:
        """A few words for whoever looks at a ranking; empty where nothing was edited.

        Example:
          >>> CatalogueEdits("", (Edit("2026-11-30T04:05:06Z", removed=("B01",)),)).notice()
          'catalogue edited: +0 -1 items since training'
        """
        more, fewer = self.counts()
        return f"catalogue edited: +{more:,} -{fewer:,} items since training" if self.edits else ""


def digest_of_run(item_ids: Iterable[str], identifiers: Mapping[str, str]) -> str:
    """A digest of the items and identifiers that a run was tuned with: edits mean nothing beside others."""
    return _digest([list(item_ids), dict(identifiers)])


def read_edits(workdir: Path) -> CatalogueEdits | None:
    """The edits of a run's catalogue; ``None`` where there are none.

    Raises:
      ValueError: the file is damaged.
    """
    path = workdir / NAME
    if not path.is_file():
        return None
    try:
        content = read_sealed(path, "catalogue")
        if content["format_version"] != FORMAT_VERSION:
            raise ValueError(
                f"it is of format version {content['format_version']}, this version reads {FORMAT_VERSION}"
            )
        return CatalogueEdits(content["run"], tuple(_edit(edit) for edit in content["edits"]))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged ({error}): restore it; without it, by removing it, the run has the catalogue that it "
            "was tuned with"
        ) from None


def write_edits(edits: CatalogueEdits, workdir: Path) -> None:
    """Keeps edits in place of those before, whole or not at all; without any the file goes."""
    if not edits.edits:
        (workdir / NAME).unlink(missing_ok=True)
        return
    content = {"format_version": FORMAT_VERSION, **dataclasses.asdict(edits)}
    write_sealed(workdir / NAME, "catalogue", content, indent=1)


def _edit(kept: Mapping[str, Any]) -> Edit:
    values = {name: tuple(kept[name]) for name in ("returned", "removed", "left_out")}
    added = tuple(NewItem(**one | {"tokens": tuple(one["tokens"])}) for one in kept["added"])
    return Edit(when=str(kept["when"]), source=str(kept["source"]), added=added, **values)


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
