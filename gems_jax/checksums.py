"""Whether the files of a folder are those that were written: SHA-256 of each, in a file beside them."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from gems_jax.object_store import StorePath
from gems_jax.staging import files_in, write_json

NAME = "checksums.json"
# Orbax's mark, on Google's object store, that all of a folder is written.
COMMITTED = "commit_success.txt"
# Orbax writes these when all else is in place.
_LATER = ("_CHECKPOINT_METADATA", COMMITTED)


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
    measured = _measured(folder, files_of(folder))
    write_json(folder / NAME, {name: {"bytes": size, "sha256": digest} for name, (size, digest) in measured.items()})


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
    chosen = list(sizes)
    if names is not None:
        belonging = {name: [one for one in sizes if one == name or one.startswith(f"{name}/")] for name in names}
        for name, stored_names in belonging.items():
            if not stored_names:
                return f"{name} was not written with it"
        chosen = [one for stored_names in belonging.values() for one in stored_names]
    there = set(folder.names()) if isinstance(folder, StorePath) else None
    for name in chosen:
        if name not in there if there is not None else not (folder / name).is_file():
            return f"{name} is missing"
        if there is None and (size := (folder / name).stat().st_size) != sizes[name]:  # before anything is read
            return f"{name} has {size:,} bytes of {sizes[name]:,}"
    unknown = sorted(set(files_of(folder)) - set(sizes)) if names is None and not others else []
    if unknown:
        return f"{unknown[0]} was not written with it"
    for name, (size, digest) in _measured(folder, chosen).items():
        if size != sizes[name]:
            return f"{name} has {size:,} bytes of {sizes[name]:,}"
        if digest != sums[name]:
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


def sums_of(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """SHA-256 of some files of a folder, 64 hexadecimal digits each, by relative path."""
    return {name: digest for name, (_, digest) in _measured(folder, names).items()}


def _measured(folder: Path, names: Sequence[str]) -> dict[str, tuple[int, str]]:
    """Bytes and SHA-256 of some files, by relative path."""

    def of(name: str) -> tuple[int, str]:
        digest, size = hashlib.sha256(), 0
        for part in _parts(folder / name):
            digest.update(part)
            size += len(part)
        return size, digest.hexdigest()

    # Hashing releases the interpreter's lock.
    with ThreadPoolExecutor(min(4, max(1, len(names)))) as pool:
        return dict(zip(names, pool.map(of, names), strict=True))


def _parts(path: Path) -> Iterator[bytes]:
    if isinstance(path, StorePath):
        yield path.read_bytes()
        return
    with path.open("rb") as file:
        while part := file.read(2**20):
            yield part
