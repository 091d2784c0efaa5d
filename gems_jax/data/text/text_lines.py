"""Lines of general text, from plain text, JSON, parquet or CSV files: what is not text is left out and told."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gems_jax.data.raw.blank import is_blank
from gems_jax.data.raw.options import Reading
from gems_jax.data.raw.quarantine import Quarantine, shorten
from gems_jax.data.raw.raw_files import Limits, find_text, is_tab_separated, kind_of, read_blocks, split_lines
from gems_jax.data.raw.raw_table import read_batches
from gems_jax.data.text.plain_text import is_unicode

FIELD_OPTION = "text.field"
# Rows of a file that may be no text.
MAX_BAD_FRACTION = 0.05
NO_TEXT, NOT_UTF8 = "it has no text", "it is not UTF-8"
_MARKUP = ("<!doctype", "<html", "<?xml")
# Characters by which a format is told.
_LOOKED_AT = 65_536


def lines_of(source: str, field: str, say: Callable[[str], None]) -> Iterator[str]:
    """Lines of all files that a name stands for, without white space around them, empty ones left out.

    Args:
      source: a file, a folder of files or a pattern; see `gems_jax.data.raw.raw_files.find_text`.
      field: of rows of JSON, parquet and CSV, that holds their text.
      say: takes a line about each file of which something is left out.

    Raises:
      FileNotFoundError: there is no file.
      ValueError: a file is of another kind, is cut off, has no such field, or too much of it is no text.
    """
    for path in find_text(source):
        texts = _plain(path) if kind_of(path) is None else _rows(path, field, say)
        for text in texts:
            yield from (line for line in map(str.strip, text.splitlines()) if not is_blank(line))


def _plain(path: Path) -> Iterator[str]:
    """The lines of a plain text."""
    beginning: str | None = ""
    for number, (line, _) in enumerate(split_lines(read_blocks(path, Limits.of(None)), sys.maxsize), start=1):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            problem = f"{error.reason} at byte {error.start + 1:,}"
        else:
            problem = "it has a NUL byte" if "\0" in text else ""
        if problem:
            raise ValueError(
                f"{path} is not UTF-8 text: line {number}: {problem}; save text of another encoding (UTF-16, Latin-1) "
                "as UTF-8, and name the text of an archive or of another binary file"
            )
        if beginning is not None:
            beginning += text + "\n"
            if len(beginning) > _LOOKED_AT:
                _refuse_other_formats(path, beginning)
                beginning = None
        yield text
    if beginning is not None:
        _refuse_other_formats(path, beginning)


def _refuse_other_formats(path: Path, beginning: str) -> None:
    """Plain text begins neither with JSON objects nor with markup: braces and tags would count as language."""
    text = beginning.lstrip()
    if text[:20].lower().startswith(_MARKUP):
        raise ValueError(f"{path} is HTML or XML, whose tags are no language; save it as plain text (.txt)")
    text = text.removeprefix("[").lstrip()
    if not text.startswith("{") or not text[1:].lstrip().startswith('"'):
        return
    try:
        json.JSONDecoder().raw_decode(text)
    except RecursionError:
        pass
    except json.JSONDecodeError as error:
        # An object that is cut off where looking stopped is one, too.
        at_end = error.pos >= len(text.rstrip()) - 12 or error.msg.startswith("Unterminated string")
        if len(beginning) <= _LOOKED_AT or not at_end:
            return
    raise ValueError(f"{path} holds JSON objects; name it .jsonl or .json, so that of each the {FIELD_OPTION} is read")


def _rows(path: Path, field: str, say: Callable[[str], None]) -> Iterator[str]:
    """The texts of a file of rows."""
    quarantine, good, may_be_empty = Quarantine(MAX_BAD_FRACTION), 0, kind_of(path) == "csv"
    # Texts of many lines stand in quotation marks.
    quoting = None if is_tab_separated(path) else Reading(quoting="rfc4180")
    for batch in read_batches(path, {"text": field}, ("text",), quarantine, "text", FIELD_OPTION, quoting, None):
        for number, value in zip(batch.numbers.tolist(), _values(batch.columns["text"]), strict=True):
            text, problem = _as_text("" if value is None and may_be_empty else value)
            if problem:
                quarantine.add("text", f"{path.name}: row {number}", problem, repr(value)[:200])
            else:
                good += 1
                yield text
    bad = quarantine.rows
    if not bad:
        return
    counts = Counter(row["reason"] for row in bad)
    reasons = ", ".join(f"{count:,}: {reason}" for reason, count in counts.most_common(5))
    if len(bad) > MAX_BAD_FRACTION * (good + len(bad)):
        raise ValueError(
            f"{path}: {len(bad):,} of {good + len(bad):,} rows cannot be read as text ({reasons}; the first is "
            f"{bad[0]['id']}: {shorten(bad[0].get('detail', ''), 80)!r}); each row must be an object or record whose "
            f"{field!r} is text: repair the file, or name another {FIELD_OPTION}"
        )
    say(f"text: {path}: {len(bad):,} of {good + len(bad):,} rows are left out ({reasons})")


def _values(column: Any) -> list[Any]:
    """Python's values of a column; bytes that are no UTF-8 as they are."""
    if isinstance(column, list):
        return column
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        return [value.as_buffer().to_pybytes() if value.is_valid else None for value in column]


def _as_text(value: Any) -> tuple[str, str]:
    """A cell's text, and what is wrong with it."""
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError:
            return "", NOT_UTF8
    if value is None:
        return "", NO_TEXT
    if not isinstance(value, str):
        return "", f"its text is a {type(value).__name__}"
    return (value, "") if is_unicode(value) else ("", "it has lone surrogates, which are no text")
