"""Where the files of a configuration lie: relative to the file that names them, absolute in what is kept."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gems_jax.staging import is_remote

# Dotted fields that are paths; those of `evaluate.compare` are by name. Those of the command itself may stand in a
# configuration file, too.
PATHS = (
    "data.path", "data.dir", "data.tokens", "text.train", "text.heldout", "pretrain.tokenizer", "model.path",
    "null_space.path", "items.identifiers", "items.path", "evaluate.compare", "workdir", "out", "page", "results",
)  # fmt: skip
# Words that stand for a text of their own.
_WORDS = ("pydoc",)
# Kinds of identifiers, where a path may stand, too.
_KINDS = ("tokens", "rkmeans", "rqvae")


def is_path(name: str, value: Any = None) -> bool:
    """Whether a field, or the entry of one, is a path, and its value, where that is given, not another word.

    Example:
      >>> is_path("data.path"), is_path("evaluate.compare.joint AdamW"), is_path("data.name")
      (True, True, False)
      >>> is_path("items.identifiers", "codes.json"), is_path("items.identifiers", "rkmeans")
      (True, False)
    """
    if name == "items.identifiers" and value in _KINDS:
        return False
    return name in PATHS or name.startswith("evaluate.compare.")


def is_relative(path: str) -> bool:
    """Whether a path says nothing without a folder that it begins in.

    Example:
      >>> is_relative("runs/demo"), is_relative("/runs"), is_relative("gs://bucket/run"), is_relative("pydoc")
      (True, False, False, False)
    """
    return bool(path) and path not in _WORDS and not is_remote(path) and not os.path.isabs(os.path.expanduser(path))


def beside(path: str, folder: str | os.PathLike[str]) -> str:
    """A path that is relative to a folder, as it is to be opened from the working directory.

    Example:
      >>> beside("../runs/demo", "configs"), beside("/runs", "configs"), beside("pydoc", "configs")
      ('runs/demo', '/runs', 'pydoc')
    """
    if not is_relative(path):
        return path if path in _WORDS or is_remote(path) else os.path.expanduser(path)
    joined = os.path.join(folder, path)
    short = os.path.normpath(joined)
    # Behind a link, ".." is another folder than the one before it.
    return short if os.path.realpath(short) == os.path.realpath(joined) else joined


def absolute(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values of a configuration with its paths absolute: relative ones begin in the working directory.

    Example:
      >>> absolute({"data": {"dir": "/a/b", "seed": 0}, "text": {"train": "pydoc"}})
      {'data': {'dir': '/a/b', 'seed': 0}, 'text': {'train': 'pydoc'}}
    """
    resolved: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            resolved[name] = absolute(value, f"{prefix}{name}.")
        elif isinstance(value, str) and is_path(prefix + name, value):
            resolved[name] = os.path.abspath(value) if is_relative(value) else beside(value, "")
        else:
            resolved[name] = value
    return resolved


def same_files(there: Any, now: Any) -> bool:
    """Whether two absolute paths name the same files: one that is gone says nothing about what was there.

    Example:
      >>> same_files("/no/such/folder", "/"), same_files("/usr", "/")
      (True, False)
    """
    if not (isinstance(there, str) and isinstance(now, str)) or not (os.path.isabs(there) and os.path.isabs(now)):
        return bool(there == now)
    return not os.path.exists(there) or os.path.realpath(there) == os.path.realpath(now)


def begins_elsewhere(path: str, resolved: str) -> bool:
    """Whether a path is missing where its configuration says, but not in the working directory."""
    return is_relative(path) and not Path(resolved).exists() and Path(path).exists()
