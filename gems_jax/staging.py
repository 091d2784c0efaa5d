"""Folders and files that appear whole or not at all."""

import itertools
import json
import os
from pathlib import Path
from typing import Any


def fresh_folder(target: Path) -> Path:
    """Makes an empty hidden folder beside ``target``, to be filled and then renamed to it.

    Unlike those of ``tempfile`` it has the permissions that folders have by default: what is renamed is for
    others to read, too.

    Example:
      >>> import tempfile
      >>> folder = fresh_folder(Path(tempfile.mkdtemp()) / "model")
      >>> folder.is_dir(), folder.name.startswith(".model.")
      (True, True)
    """
    for number in itertools.count():
        folder = target.with_name(f".{target.name}.{os.getpid()}.{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise AssertionError("unreachable")


def write_text(path: Path, text: str) -> None:
    """Writes a file under a temporary name beside it and renames it.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "a" / "b.txt"
      >>> write_text(path, "text")
      >>> [file.name for file in path.parent.iterdir()]
      ['b.txt']
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.tmp")
    try:
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """`write_text` of a value as JSON, a line for each entry."""
    write_text(path, json.dumps(value, indent=1) + "\n")
