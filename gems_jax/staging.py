"""Folders that appear whole or not at all."""

import itertools
import os
from pathlib import Path


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
