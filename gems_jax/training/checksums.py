"""Whether the files of a folder are those that were written: SHA-256 of each, in a file beside them."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gems_jax.staging import write_json

NAME = "checksums.json"
# Orbax writes these when all else is in place: times, and marks that a folder has its final name.
_LATER = ("_CHECKPOINT_METADATA", "commit_success.txt")


def files_of(folder: Path) -> list[str]:
    """Relative paths of all files that have a checksum, sorted."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.name not in (NAME, *_LATER))
    return sorted(path.relative_to(folder).as_posix() for path in found)


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
    content = {name: {"bytes": (folder / name).stat().st_size, "sha256": sums[name]} for name in names}
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
    for name, size in sizes.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        found = (folder / name).stat().st_size
        if found != size:
            return f"{name} has {found:,} bytes of {size:,}"
    unknown = sorted(set(files_of(folder)) - set(sizes))
    if unknown:
        return f"{unknown[0]} was not written with it"
    for name, found_sum in _sums(folder, list(sums)).items():
        if found_sum != sums[name]:
            return f"{name} has other content than was written"
    return None


def _sums(folder: Path, names: list[str]) -> dict[str, str]:
    def of(name: str) -> str:
        with (folder / name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    # Hashing releases the interpreter's lock.
    with ThreadPoolExecutor(min(4, max(1, len(names)))) as pool:
        return dict(zip(names, pool.map(of, names), strict=True))
