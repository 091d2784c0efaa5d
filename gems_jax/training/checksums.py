"""Whether the files of a folder are those that were written: SHA-256 of each, in a file beside them."""

import hashlib
import json
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
    sums = _sums(folder, names)
    content = {name: {"bytes": _size(folder / name), "sha256": sums[name]} for name in names}
    write_json(folder / NAME, content)


def damage(folder: Path) -> str | None:
    """What is wrong with a folder that has checksums, in words; ``None``: nothing.

    Args:
      folder: written by `write_checksums`.
    """
    try:
        written = json.loads((folder / NAME).read_text(encoding="utf-8"))
        sizes = {str(name): int(entry["bytes"]) for name, entry in written.items()}
        sums = {str(name): str(entry["sha256"]) for name, entry in written.items()}
    except FileNotFoundError:
        return f"{NAME} is missing: it was not written to its end"
    except (ValueError, TypeError, KeyError, AttributeError):
        return f"{NAME} is damaged"
    if str(folder).startswith("gs://") and not (folder / _MARK).exists():
        return f"{_MARK} is missing: it was not written to its end"
    for name, size in sizes.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        found = _size(folder / name)
        if found != size:
            return f"{name} has {found:,} bytes of {size:,}"
    unknown = sorted(set(files_of(folder)) - set(sizes))
    if unknown:
        return f"{unknown[0]} was not written with it"
    for name, found_sum in _sums(folder, list(sums)).items():
        if found_sum != sums[name]:
            return f"{name} has other content than was written"
    return None


def _size(path: Path) -> int:
    found: Any = path.stat()
    return int(found.length if is_remote(path) else found.st_size)


def _sums(folder: Path, names: list[str]) -> dict[str, str]:
    def of(name: str) -> str:
        found = hashlib.sha256()
        with (folder / name).open("rb") as file:
            while part := file.read(2**20):
                found.update(part)
        return found.hexdigest()

    # Hashing releases the interpreter's lock.
    with ThreadPoolExecutor(min(4, max(1, len(names)))) as pool:
        return dict(zip(names, pool.map(of, names), strict=True))
