"""JSON files of a work directory that tell whether they are what was written: their content beside its digest."""

import hashlib
import json
from pathlib import Path
from typing import Any

from gems_jax.checksums import unique
from gems_jax.staging import write_text


def write_sealed(path: Path, name: str, content: Any, indent: int | None = None) -> None:
    """Writes ``{"sha256": ..., name: content}``, whole or not at all.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "file.json"
      >>> write_sealed(path, "numbers", (1, 2))
      >>> read_sealed(path, "numbers")
      [1, 2]
    """
    write_text(path, json.dumps({"sha256": _digest(content), name: content}, indent=indent) + "\n")


def read_sealed(path: Path, name: str) -> Any:
    """The content that `write_sealed` wrote.

    Raises:
      ValueError, TypeError, KeyError: the file is no such file, or was changed.
    """
    kept = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=unique)
    content = kept[name]
    if set(kept) != {"sha256", name} or kept["sha256"] != _digest(content):
        raise ValueError("its content is not what was written")
    return content


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
