"""The header of a delimited text: names of columns, and how the text is written where nobody says it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from gems_jax.data.raw.blank import trimmed
from gems_jax.data.raw.csv_records import line_ends
from gems_jax.data.raw.csv_rows import parse
from gems_jax.data.raw.options import Reading
from gems_jax.data.raw.raw_files import is_tab_separated

_DELIMITERS = (",", ";", "\t", "|")


class Header(NamedTuple):
    """The beginning of a text: its columns, how it is written, and where its rows begin, in bytes and lines."""

    names: list[str]
    delimiter: str
    quoted: bool
    end: int
    line: int


def read_header(path: Path, beginning: bytes, reading: Reading, needed: Sequence[str]) -> Header:
    """The header line, behind blank lines and Excel's ``sep=;``.

    Args:
      path: by whose name ``.tsv`` has tabs and no quoting, unless the header shows other things.
      beginning: of the file; its first line at least.
      reading: the options; what they say holds.
      needed: names of columns: the delimiter is the one that gives most of them.

    Raises:
      ValueError: there is none, or it is not UTF-8.
    """
    start, line = 0, 1
    given = reading.delimiter_character
    while True:
        ends = line_ends(beginning[start:], True)
        if not len(ends):
            raise ValueError(f"{path} is empty; it needs a header line")
        text = beginning[start : start + int(ends[0])]
        bare = text.rstrip(b"\r\n")
        if bare.strip() and not _names_delimiter(bare):
            break
        if bare.strip():
            given = given or bare[4:].decode("ascii", "replace")
        start, line = start + len(text), line + 1
    tabs = is_tab_separated(path)
    quoted = reading.quoting == "rfc4180" if reading.quoting else not tabs or b'"' in text
    lines = 1
    while quoted and text.count(b'"') % 2 and lines < len(ends):
        # A name with a line break in it.
        text = beginning[start : start + int(ends[lines])]
        lines += 1
    candidates = [given] if given else sorted(_DELIMITERS, key=lambda mark: (mark != "\t") if tabs else 0)
    try:
        text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} has no readable header line ({error}); is it UTF-8?") from None
    parsed = [(parse(text, delimiter, quoted), delimiter) for delimiter in candidates]
    # The one that gives most of the needed columns; among equals the one that gives most columns, then the first.
    wanted = set(map(trimmed, needed))
    names, delimiter = max(parsed, key=lambda pair: (len(wanted & set(map(trimmed, pair[0]))), len(pair[0])))
    if not wanted & set(map(trimmed, names)) and bare.lstrip(b" [").startswith(b'{"'):
        raise ValueError(f"{path} holds JSON objects; name it .jsonl or .json")
    return Header(names, delimiter, quoted, start + len(text), line + lines)


def _names_delimiter(line: bytes) -> bool:
    return line[:4].lower() == b"sep=" and len(line) == len("sep=;")
