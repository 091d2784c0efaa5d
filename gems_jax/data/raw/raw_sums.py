"""Whether raw files are those that a dataset was made of: by size and time of change, else by content."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gems_jax.checksums import sums_of


def summed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with the SHA-256 of each raw file behind its size and time of change.

    Args:
      settings: ``path``, the folder, and ``raw``, name to ``[bytes, nanoseconds]``, where the source has raw files.

    Raises:
      ValueError: a file has changed since.
    """
    raw = settings.get("raw")
    if not raw:
        return dict(settings)
    folder = Path(settings["path"])
    sums = sums_of(folder, list(raw))
    for name, (size, changed) in raw.items():
        status = (folder / name).stat()
        if (status.st_size, status.st_mtime_ns) != (size, changed):
            raise ValueError(f"the raw file {folder / name} has changed while it was prepared; prepare again")
    return {**settings, "raw": {name: [*entry, sums[name]] for name, entry in raw.items()}}


def with_sums(made: Any, settings: Mapping[str, Any]) -> Any:
    """The raw files of these settings as those of a dataset's card, where they are the same files.

    A file of another time of change is read: copied, moved or touched it has the same content.

    Args:
      made: settings in the card.
      settings: of this preparation.
    """
    raw = settings.get("raw")
    there = made.get("raw") if isinstance(made, Mapping) else None
    if not raw or not isinstance(there, Mapping):
        return raw
    result = dict(raw)
    for name, (size, changed, *_) in raw.items():
        before = there.get(name)
        if not isinstance(before, list) or len(before) < 2 or before[0] != size:
            continue
        if before[1] == changed or len(before) == 3 and sums_of(Path(settings["path"]), [name])[name] == before[2]:
            result[name] = before
    return result
