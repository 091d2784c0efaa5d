"""Identifiers that others publish: a JSON file of items and their codes as tokens."""

import os
import re

import numpy as np

from gems_jax.identifiers.checks import MOST_LEVELS, MOST_SIZE
from gems_jax.identifiers.codes import Identifiers
from gems_jax.items.tokens import read_identifiers

# Codes are written with a name of their level and a number.
_TOKEN = re.compile(r"<([^<>\d]+|[^<>]*\D)(\d{1,9})>")


def load(path: str | os.PathLike[str]) -> Identifiers:
    """Reads identifiers as they are published, ``{"0": ["<a_113>", "<b_148>", ...], ...}``; nothing is unpickled.

    Args:
      path: JSON file, an object of item id to one token a level, each with the level's name and a number; as a list or
        in one string.

    Returns:
      `Identifiers` of the items in the file's order, with ``item_ids`` and ``level_names`` and without codebooks. Items
      may share all codes: `Identifiers.report` says how many do.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no such object, too large, an item stands there twice, or has another number of levels, another
        level's token or a number out of range.

    Example:
      >>> import pathlib, tempfile
      >>> path = pathlib.Path(tempfile.mkdtemp()) / "codes.json"
      >>> _ = path.write_text('{"B01": ["<a_1>", "<b_20>"], "B02": "<a_1><b_3>"}')
      >>> load(path).codes.tolist(), load(path).item_ids
      ([[1, 20], [1, 3]], ('B01', 'B02'))
    """
    tokens_of = read_identifiers(path)
    names: list[str] = []
    codes = []
    for item_id, tokens in tokens_of.items():
        found = [_TOKEN.fullmatch(token) for token in tokens]
        levels = [match.group(1) if match else "" for match in found]
        names = names or levels
        if not all(levels) or levels != names or len(set(names)) < len(names):
            raise ValueError(
                f"{path}: item {item_id!r} has {list(tokens)}: expected a token a level, each with the level's name "
                "and a number, the same levels for all items, such as ['<a_12>', '<b_7>']"
            )
        codes.append([int(match.group(2)) for match in found if match])
    array = np.array(codes, np.int64)
    if len(names) > MOST_LEVELS or array.max() >= MOST_SIZE:
        raise ValueError(
            f"{path} has {len(names)} levels and codes up to {array.max()}: at most {MOST_LEVELS} levels and codes "
            f"below {MOST_SIZE:,} are read"
        )
    return Identifiers(array.astype(np.int32), item_ids=tuple(tokens_of), level_names=tuple(names))
