"""Pickle files of plain containers, read without running anything they name."""

from __future__ import annotations

import collections
import functools
import itertools
import pickle
from pathlib import Path
from typing import Any, BinaryIO

from gems_jax.data.raw.pickle_scan import check_operations
from gems_jax.data.raw.raw_files import Limits

# Containers that a pickle must name to build; lists, tuples, dictionaries, text and numbers need no name.
_PLAIN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "defaultdict"): collections.defaultdict,
} | {("builtins", plain.__name__): plain for plain in (list, dict, set, tuple, frozenset)}


# Deeper values are no rows of anything.
MAX_DEPTH = 64
# Bytes that a value is counted as, beside its text.
_VALUE = 8


class _PlainUnpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO, most: int) -> None:
        super().__init__(file)
        self._left = most

    def find_class(self, module: str, name: str) -> Any:
        module = "builtins" if module == "__builtin__" else module  # as Python 2 calls them
        if (module, name) not in _PLAIN:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is not a plain container")
        return functools.partial(self._make, _PLAIN[module, name])

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError(f"it refers to an object outside the file ({pid!r:.60})")

    def _make(self, kind: Any, *args: Any) -> Any:
        """A container; what a file lets be copied over and over is counted."""
        # The default of a default dictionary is no part of what it holds.
        made = kind(None, *args[1:]) if kind is collections.defaultdict else kind(*args)
        self._left -= _VALUE * len(made)
        if self._left < 0:
            raise pickle.UnpicklingError("it copies containers over and over")
        return made


def check_parts(value: Any, most: int) -> None:
    """Containers that stand in several others count in each, as all that walks, prints or compares them finds them.

    Args:
      value: lists, tuples, sets and dictionaries of anything.
      most: bytes of text and parts, 8 a part.

    Raises:
      pickle.UnpicklingError: it has more, or is nested more than `MAX_DEPTH` deep, as is what contains itself.

    Example:
      >>> inner = ["a"]
      >>> for _ in range(40):
      ...     inner = [inner, inner]
      >>> check_parts(inner, 2**20)
      Traceback (most recent call last):
      ...
      _pickle.UnpicklingError: written out it has more than 1,048,576 bytes
    """
    # Containers of one depth, each with how often it stands in others.
    level: dict[int, tuple[Any, int]] = {0: ([value], 1)}
    held = 0
    for _ in range(MAX_DEPTH + 1):
        deeper: dict[int, tuple[Any, int]] = {}
        for container, times in level.values():
            parts = itertools.chain(container, container.values()) if isinstance(container, dict) else container
            size = 0
            for part in parts:
                size += _VALUE
                if isinstance(part, str | bytes):
                    size += len(part)
                elif isinstance(part, list | tuple | dict | set | frozenset):
                    deeper[id(part)] = (part, times + deeper.get(id(part), (part, 0))[1])
            held += size * times
            if held > most:
                raise pickle.UnpicklingError(f"written out it has more than {most:,} bytes")
        if not deeper:
            return
        level = deeper
    raise pickle.UnpicklingError(f"it is nested more than {MAX_DEPTH} deep")


def load_plain(path: str | Path) -> Any:
    """Reads a pickle file that holds lists, tuples, sets, dictionaries, text, numbers and None alone.

    Anything else (a DataFrame, a numpy array, a function) is refused by its name before it is touched. A value
    that is small in the file and large once it is walked, hashed or printed is refused: see `check_operations` and
    `check_parts`.

    Args:
      path: the file.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it names anything but a plain container, holds too much, is damaged, or is not a pickle.

    Example:
      >>> import os, tempfile
      >>> path = Path(tempfile.mkdtemp()) / "rows.pkl"
      >>> _ = path.write_bytes(pickle.dumps({0: {"user_id": 3, "item_list": [5, 6]}}))
      >>> load_plain(path)
      {0: {'user_id': 3, 'item_list': [5, 6]}}
      >>> _ = path.write_bytes(pickle.dumps(os.getcwd))
      >>> load_plain(path)
      Traceback (most recent call last):
      ...
      ValueError: .../rows.pkl cannot be imported: it names posix.getcwd, which is not a plain container; ...
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; name a pickle file")
    most = Limits.of(None).allowed(path)
    try:
        check_operations(path)
        with path.open("rb") as file:
            value = _PlainUnpickler(file, most).load()
        check_parts(value, most)
        return value
    # A damaged pickle raises nearly anything.
    except Exception as error:
        raise ValueError(
            f"{path} cannot be imported: {error or type(error).__name__}; only dictionaries, lists, sets, tuples, text "
            "and numbers are admitted: where you trust the file, write it anew as such (a DataFrame by "
            'to_dict(orient="index")), or as CSV or parquet'
        ) from None
