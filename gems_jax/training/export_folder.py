"""Where an export may be written: a folder that is new, empty, or an earlier export of the same run."""

import json
import os
from pathlib import Path

MARK = "export.json"


def mark_of(workdir: Path) -> str:
    """The text of the file that tells whose export a folder is."""
    return json.dumps({"run": os.path.realpath(workdir)}) + "\n"


def check_folder(folder: str | os.PathLike[str], workdir: Path, base: str | os.PathLike[str]) -> None:
    """Checks that nothing else than an earlier export of this run would be replaced.

    Args:
      folder: to write.
      workdir: of the run.
      base: the base model's folder, made or not.

    Raises:
      ValueError: it is the base model's, a file, or holds anything else.

    Example:
      >>> import tempfile
      >>> place = Path(tempfile.mkdtemp())
      >>> check_folder(place / "new", place / "run", place / "base")
      >>> check_folder(place / "base" / ".", place / "run", place / "base")  # doctest: +ELLIPSIS
      Traceback (most recent call last):
      ...
      ValueError: --out ...base is the folder of the base model (model.path): give another folder
    """
    place = Path(folder)
    if os.path.realpath(place) == os.path.realpath(base):
        raise ValueError(f"--out {folder} is the folder of the base model (model.path): give another folder")
    if place.exists() and not place.is_dir():
        raise ValueError(f"--out {folder} is a file: give the path of a folder")
    if not place.is_dir() or not any(place.iterdir()):
        return
    mark = place / MARK
    if not mark.is_file() or mark.read_bytes() != mark_of(workdir).encode():
        raise ValueError(
            f"--out {folder} holds files and is no export of {workdir}: they would be replaced; give another folder, "
            "or remove it first"
        )
