"""Pickle files of plain containers, read without running anything they name."""

from __future__ import annotations

import collections
import pickle
from pathlib import Path
from typing import Any

# Containers that a pickle must name to build; lists, tuples, dictionaries, text and numbers need no name.
_PLAIN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "defaultdict"): collections.defaultdict,
} | {("builtins", plain.__name__): plain for plain in (list, dict, set, tuple, frozenset)}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        module = "builtins" if module == "__builtin__" else module  # as Python 2 calls them
        if (module, name) not in _PLAIN:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is not a plain container")
        return _PLAIN[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError(f"it refers to an object outside the file ({pid!r:.60})")


def load_plain(path: str | Path) -> Any:
    """What a pickle file holds, where that is lists, tuples, sets, dictionaries, text, numbers and None alone.

    Anything else (a DataFrame, a numpy array, a function) is refused by its name before it is touched.

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

    Args:
        path: the file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it names anything but a plain container, is damaged, or is not a pickle.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; name a pickle file")
    try:
        with path.open("rb") as file:
            return _PlainUnpickler(file).load()
    # A damaged pickle raises nearly anything.
    except Exception as error:
        raise ValueError(
            f"{path} cannot be imported: {error or type(error).__name__}; only dictionaries, lists, sets, tuples, text "
            "and numbers are admitted: where you trust the file, write it anew as such (a DataFrame by "
            'to_dict(orient="index")), or as CSV or parquet'
        ) from None
