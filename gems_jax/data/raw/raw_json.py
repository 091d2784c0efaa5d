"""Reading a large JSON object entry by entry, so that one malformed entry does not cost the file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gems_jax.data.raw.quarantine import Quarantine

_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"[\s,]*")
_COLON = re.compile(r"\s*:\s*")
# Where reading can go on after a malformed entry: a key whose value is a container.
_NEXT_ENTRY = re.compile(r'"(?:[^"\\\n]|\\.)*"\s*:\s*[\[{]')


def read_text(path: Path) -> str:
    """The file as UTF-8 text; a missing or undecodable file is an error that names it."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; point the data path at the folder that holds {path.name}")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from None


def read_object(path: Path, kind: str, quarantine: Quarantine) -> dict[str, Any]:
    """The entries of a file holding one JSON object; malformed entries go to the quarantine as ``kind``.

    A file that is cut off or holds something else is a ValueError: what is missing from it cannot be counted.
    """
    text = read_text(path)
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        return dict(_entries(text, path, kind, quarantine))
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold one JSON object, found {type(value).__name__}")
    return value


def _entries(text: str, path: Path, kind: str, quarantine: Quarantine) -> Iterator[tuple[str, Any]]:
    stripped = text.strip()
    if not stripped.startswith("{"):
        raise ValueError(f"{path} must hold one JSON object, starting with '{{'")
    cut_off = f"{path} is cut off: its JSON object is not closed; get the whole file"
    if not stripped.endswith("}"):
        raise ValueError(cut_off)
    end = text.rindex("}")
    position = text.index("{") + 1
    while True:
        position = _skip(_SPACE, text, position)
        if position > end:  # the last brace closed an entry, not the object
            raise ValueError(cut_off)
        if position == end:
            return
        try:
            key, after = _DECODER.raw_decode(text, position)
            value, position = _DECODER.raw_decode(text, _skip(_COLON, text, after))
            yield str(key), value
        except (json.JSONDecodeError, RecursionError) as error:
            line = text.count("\n", 0, position) + 1
            name = text[position : position + 40].split(":")[0].strip().strip('"')
            quarantine.add(kind, name, "it is malformed JSON", f"line {line}: {error}")
            following = _NEXT_ENTRY.search(text, position + 1 + len(name))
            position = following.start() if following else end


def _skip(pattern: re.Pattern[str], text: str, position: int) -> int:
    match = pattern.match(text, position)
    return match.end() if match else position
