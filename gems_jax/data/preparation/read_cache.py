"""Files of raw rows that were read already, so that a preparation that was interrupted need not read them again."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from gems_jax.data.preparation.resume import Pace
from gems_jax.data.raw.examples import Examples, Names
from gems_jax.data.raw.quarantine import Quarantine
from gems_jax.data.raw.ragged import Ragged
from gems_jax.staging import fresh_folder

File = TypeVar("File")

COLUMNS, NEW = "columns.npz", "new.json"


class ReadCache:
    """The usable rows of each file, with the names, the bad rows and the remarks that came with them.

    Args:
      folder: gets a folder a file.
      say: takes a line after each file, where there are several.
    """

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self._folder, self._say = folder, say
        self._pace: Pace | None = None
        folder.mkdir(exist_ok=True)

    def rows_of(
        self, number: int, total: int, names: Names, quarantine: Quarantine, read: Callable[[], Examples | None]
    ) -> Examples | None:
        """The rows of a file, stored or read now; files come in the same order always.

        Args:
          number: of the file.
          total: files.
          names: of all files before; gets those of this one.
          quarantine: gets this file's bad rows.
          read: reads the file.
        """
        file_folder = self._folder / f"{number:05d}"
        if (file_folder / NEW).is_file():
            if total > 1:
                self._say(f"data: file {number + 1} of {total} is read already")
            return _load(file_folder, names, quarantine)
        self._pace = self._pace or Pace(total, number)
        known, bad = {name: len(getattr(names, name)) for name in vars(names)}, len(quarantine.rows)
        remarks = dict(quarantine.remarks)
        rows = read()
        new = {name: getattr(names, name).names[count:] for name, count in known.items()}
        temporary = fresh_folder(file_folder)
        if rows is not None:
            np.savez(temporary / COLUMNS, allow_pickle=False, **_arrays(rows))
        said = [
            (text, remark.times - (remarks[text].times if text in remarks else 0), remark.example)
            for text, remark in quarantine.remarks.items()
            if remark != remarks.get(text)
        ]
        stored = {"names": new, "bad": quarantine.rows[bad:], "remarks": said, "rows": rows is not None}
        (temporary / NEW).write_text(json.dumps(stored), encoding="utf-8")
        os.rename(temporary, file_folder)
        if total > 1:
            self._say(f"data: file {number + 1} of {total} read, {self._pace.of(number + 1)}")
        return rows

    def rows_of_each(
        self, files: Sequence[File], names: Names, quarantine: Quarantine, read: Callable[[File], Examples | None]
    ) -> Iterator[Examples]:
        """The rows of one file after the other that has some, each as by `rows_of`.

        Args:
          files: what ``read`` takes of each.
          names: gets those of all files.
          quarantine: gets the bad rows.
          read: reads a file.
        """
        for number, file in enumerate(files):
            rows = self.rows_of(number, len(files), names, quarantine, functools.partial(read, file))
            if rows is not None:
                yield rows


def _arrays(rows: Examples) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for name, value in vars(rows).items():
        if isinstance(value, Ragged):
            arrays |= {f"values.{name}": value.values, f"offsets.{name}": value.offsets}
        elif isinstance(value, np.ndarray):
            arrays[f"column.{name}"] = value
    return arrays


def _load(folder: Path, names: Names, quarantine: Quarantine) -> Examples | None:
    stored = json.loads((folder / NEW).read_text(encoding="utf-8"))
    for kind, new in stored["names"].items():
        for name in new:
            getattr(names, kind).add(name)
    quarantine.rows.extend(stored["bad"])
    for text, count, example in stored["remarks"]:
        quarantine.remark(text, count, example)
    if not stored["rows"]:
        return None
    columns: dict[str, Any] = {}
    with np.load(folder / COLUMNS, allow_pickle=False) as arrays:
        for key in arrays:
            kind, _, name = key.partition(".")
            if kind == "values":
                columns[name] = Ragged(arrays[key], arrays[f"offsets.{name}"])
            elif kind == "column":
                columns[name] = arrays[key]
    return Examples(names, **columns)
