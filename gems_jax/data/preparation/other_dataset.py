"""How the settings a dataset was prepared with differ from those that are asked for now."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gems_jax.data.preparation.options import Preprocessing
from gems_jax.data.raw.options import TableFiles
from gems_jax.first_few import first_few

SHOWN = 6
# Settings that older cards have under another name.
_RENAMED = {"steps": "preprocessing"}


class OtherDataset(ValueError):
    """A folder holds another dataset than the one asked for.

    Args:
      folder: holds the other dataset.
      differences: the settings that differ, in words, as this file's `differences` gives them.
    """

    def __init__(self, folder: str | Path, differences: Sequence[str]):
        super().__init__(
            f"{folder} holds another dataset than the one asked for: {first_few(differences, SHOWN, '; ')}. Name "
            "another data.dir for this one or, if no run needs the other any more, remove the folder"
        )
        self.differences = differences


def differences(made: Any, wanted: Mapping[str, Any]) -> list[str]:
    """In words, one a setting; none where both describe the same dataset.

    A folder of raw files may have moved, if the files are the same; options that did not exist yet had their defaults.

    Args:
      made: settings in the card of the dataset that is there, JSON values.
      wanted: settings of this preparation.

    Example:
      >>> differences({"name": "table", "seed": 0, "files": {"items": None}}, {"name": "table", "seed": 1})
      ['seed: 0 there, 1 here', 'files.items: None there, nothing here']
    """
    if not isinstance(made, dict):
        return ["it does not say what it was made of"]
    made = {_RENAMED.get(key, key): value for key, value in made.items()}
    made = {key: _with_defaults(key, value) if key in wanted else value for key, value in made.items()}
    wanted = {key: _with_defaults(key, value) for key, value in wanted.items()}
    if made.get("raw") and made.get("raw") == wanted.get("raw"):
        made["path"] = wanted.get("path")
    # A preparation that passed does so under a looser limit, too, with the same rows.
    if "max_bad_fraction" in wanted and wanted["max_bad_fraction"] >= made.get("max_bad_fraction", 1.0):
        made["max_bad_fraction"] = wanted["max_bad_fraction"]
    return list(_differences("", made, wanted))


def _with_defaults(key: str, value: Any) -> Any:
    kind = {"files": TableFiles, "preprocessing": Preprocessing}.get(key)
    if kind is None or not isinstance(value, dict):
        return value
    defaults = dataclasses.asdict(kind())
    return {name: list(part) if isinstance(part, tuple) else part for name, part in (defaults | value).items()}


def _differences(setting: str, made: Any, wanted: Any) -> Iterator[str]:
    if isinstance(made, dict) and isinstance(wanted, Mapping):
        for key in dict.fromkeys((*made, *wanted)):
            if setting == "raw":
                if made.get(key) != wanted.get(key):
                    how = "has changed since" if key in made and key in wanted else "is gone"
                    yield f"the raw file {key} {'was not there' if key not in made else how}"
            else:
                inner = f"{setting}.{key}" if setting else key
                yield from _differences(inner, made.get(key, _NOTHING), wanted.get(key, _NOTHING))
    elif made != wanted:
        # A dictionary against nothing: what it has.
        if isinstance(made, dict) or isinstance(wanted, Mapping):
            mine, other = (value if isinstance(value, Mapping) else {} for value in (made, wanted))
            yield from _differences(setting, dict(mine), other)
        else:
            yield f"{setting}: {_word(made)} there, {_word(wanted)} here"


class _Nothing:
    pass


_NOTHING = _Nothing()


def _word(value: Any) -> str:
    return "nothing" if value is _NOTHING else repr(value)
