"""Whether the files of a folder are those that were written: SHA-256 of each, in a file beside them."""

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from gems_jax.staging import files_in, is_remote, write_json

NAME = "checksums.json"
# Orbax's mark, on Google's object store, that all of a folder is written.
_MARK = "commit_success.txt"
# Orbax writes these when all else is in place.
_LATER = ("_CHECKPOINT_METADATA", _MARK)


def files_of(folder: Path) -> list[str]:
    """Relative paths of all files that have a checksum, sorted."""
    return sorted(name for name, _ in files_in(folder) if name.rpartition("/")[2] not in (NAME, *_LATER))


def write_checksums(folder: Path) -> None:
    """Writes ``checksums.json``: size and SHA-256 of every file, by relative path; whole or not at all.

    Args:
      folder: all of whose other files are complete.

    Example:
      >>> import tempfile
      >>> folder = Path(tempfile.mkdtemp())
      >>> _ = (folder / "a").write_text("text")
      >>> write_checksums(folder)
      >>> damage(folder) is None
      True
      >>> _ = (folder / "a").write_text("next")
      >>> damage(folder)
      'a has other content than was written'
    """
    names = files_of(folder)
    sums = sums_of(folder, names)
    content = {name: {"bytes": _size(folder / name), "sha256": sums[name]} for name in names}
    write_json(folder / NAME, content)


def damage(folder: Path, names: Sequence[str] | None = None, others: bool = False) -> str | None:
    """Says in words what is wrong with a folder that has checksums; ``None``: nothing is.

    Args:
      folder: written by `write_checksums`.
      names: relative paths of the files, or folders of files, to look at; ``None``: all, and there may be no others
        unless ``others`` is set.
      others: whether people may have put files of their own there.
    """
    try:
        pairs = json.loads((folder / NAME).read_text(encoding="utf-8"), object_pairs_hook=unique)
        sizes = {str(name): int(entry["bytes"]) for name, entry in pairs.items()}
        sums = {str(name): str(entry["sha256"]) for name, entry in pairs.items()}
    except FileNotFoundError:
        return f"{NAME} is missing: it was not written to its end"
    except (ValueError, TypeError, KeyError, AttributeError):
        return f"{NAME} is damaged"
    if str(folder).startswith("gs://") and not (folder / _MARK).exists():
        return f"{_MARK} is missing: it was not written to its end"
    chosen = list(sizes)
    if names is not None:
        belonging = {name: [one for one in sizes if one == name or one.startswith(f"{name}/")] for name in names}
        for name, stored_names in belonging.items():
            if not stored_names:
                return f"{name} was not written with it"
        chosen = [one for stored_names in belonging.values() for one in stored_names]
    for name in chosen:
        if not (folder / name).is_file():
            return f"{name} is missing"
        size = _size(folder / name)
        if size != sizes[name]:
            return f"{name} has {size:,} bytes of {sizes[name]:,}"
    unknown = sorted(set(files_of(folder)) - set(sizes)) if names is None and not others else []
    if unknown:
        return f"{unknown[0]} was not written with it"
    for name, current_sum in sums_of(folder, chosen).items():
        if current_sum != sums[name]:
            return f"{name} has other content than was written"
    return None


def check_written(folder: Path, name: str, remedy: str) -> None:
    """Checks a file of a folder, or a folder of files in it, against its checksums; where there are none, all is well.

    Args:
      folder: has a ``checksums.json`` unless an older version wrote it.
      name: relative path.
      remedy: what to do where it is damaged, the end of the message.

    Raises:
      ValueError: it is not what was written.
    """
    if (folder / NAME).is_file():
        wrong = damage(folder, [name])
        if wrong is not None:
            raise ValueError(f"{folder / name} is damaged ({wrong}); {remedy}")


def unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """For ``json.loads``: an object whose keys differ.

    Raises:
      ValueError: a key stands there twice.
    """
    entries = dict(pairs)
    if len(entries) != len(pairs):
        twice = next(key for index, (key, _) in enumerate(pairs) if key in dict(pairs[:index]))
        raise ValueError(f"{twice!r} stands there twice")
    return entries


def _size(path: Path) -> int:
    status: Any = path.stat()
    return int(status.length if is_remote(path) else status.st_size)


def sums_of(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """SHA-256 of some files of a folder, 64 hexadecimal digits each, by relative path."""

    def of(name: str) -> str:
        digest = hashlib.sha256()
        with (folder / name).open("rb") as file:
            while part := file.read(2**20):
                digest.update(part)
        return digest.hexdigest()

    # Hashing releases the interpreter's lock.
    with ThreadPoolExecutor(min(4, max(1, len(names)))) as pool:
        return dict(zip(names, pool.map(of, names), strict=True))
