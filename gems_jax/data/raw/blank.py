"""Tells what is nothing: text without a visible character, and words that programs write for a missing value."""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Sequence
from typing import Any

# How pandas (https://pandas.pydata.org/docs/reference/api/pandas.read_csv.html, ``na_values``), MySQL and Hive (\N),
# BigQuery, Spark (null), DBeaver ([NULL]), Oracle's tools ((null)), Go (<nil>) and JavaScript (undefined) write it.
MISSING_WORDS = (
    "nan", "NaN", "NAN", "-nan", "-NaN", "1.#QNAN", "-1.#QNAN", "1.#IND", "-1.#IND", "None", "none", "NONE", "NULL",
    "Null", "null", "<null>", "(null)", "[NULL]", "[null]", "\\N", "NA", "<NA>", "N/A", "n/a", "#N/A", "#N/A N/A",
    "#NA", "NaT", "<nil>", "undefined",
)  # fmt: skip
# Separators, controls, formats (zero width, direction marks, BOM), and what else draws nothing though it is a letter,
# a mark or a symbol: joiners, fillers, variation selectors, the empty Braille pattern; U+FFFD stands for lost text.
_CATEGORIES = ("Zs", "Zl", "Zp", "Cc", "Cf")
_OTHERS = (
    (0x034F, 0x034F), (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F), (0x2065, 0x2065), (0x2800, 0x2800),
    (0x3164, 0x3164), (0xFE00, 0xFE0F), (0xFFA0, 0xFFA0), (0xFFF0, 0xFFF8), (0xFFFD, 0xFFFD), (0xE0000, 0xE0FFF),
)  # fmt: skip
_VISIBLE = r"[^\p{Z}\p{Cc}\p{Cf}" + "".join(rf"\x{{{a:X}}}-\x{{{b:X}}}" for a, b in _OTHERS) + "]"


def is_blank(text: str) -> bool:
    """Whether a text has no visible character: nothing that a reader or a tokenizer could make something of.

    Example:
      >>> is_blank("\\u200b\\ufeff "), is_blank("\\u200bx")
      (True, False)
    """
    return not any(map(_is_visible, text))


def unescaped_line(value: Any) -> str:
    """One line of text without HTML's escapes (some files escape twice); anything but visible text counts as empty.

    Example:
      >>> unescaped_line("nuts &amp;amp;  bolts\\n"), unescaped_line(None), unescaped_line("\\u200b")
      ('nuts & bolts', '', '')
    """
    text = " ".join(html.unescape(html.unescape(value)).split()) if isinstance(value, str) else ""
    return "" if is_blank(text) else text


def trimmed(text: str) -> str:
    """A text without what draws nothing at its ends.

    Example:
      >>> trimmed("\\ufeff query\\u200b ")
      'query'
    """
    bare = text.strip()
    first, end = 0, len(bare)
    while first < end and not _is_visible(bare[first]):
        first += 1
    while first < end and not _is_visible(bare[end - 1]):
        end -= 1
    return bare[first:end]


def without_blanks(texts: Any) -> Any:
    """A pyarrow string array, null where a text has no visible character."""
    import pyarrow.compute as pc

    visible = pc.match_substring_regex(texts, _VISIBLE)
    return texts if pc.all(visible).as_py() is not False else pc.if_else(visible, texts, None)


def without_words(texts: Any, words: Sequence[str]) -> tuple[Any, dict[str, int]]:
    """A pyarrow string array, null where a text is one of the words, and how often each of them stood there.

    Example:
      >>> import pyarrow as pa
      >>> texts, counts = without_words(pa.array(["tea", "nan", "nan bread", None, "nan"]), ["nan", "NULL"])
      >>> texts.to_pylist(), counts
      (['tea', None, 'nan bread', None, None], {'nan': 2})
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    is_word = pc.fill_null(pc.is_in(texts, value_set=pa.array(list(words), texts.type), skip_nulls=True), False)
    if not pc.any(is_word).as_py():
        return texts, {}
    counts = pc.value_counts(texts.filter(is_word)).to_pylist()
    return pc.if_else(is_word, None, texts), {entry["values"]: entry["counts"] for entry in counts}


def _is_visible(character: str) -> bool:
    if "!" <= character <= "~":  # as most are
        return True
    if unicodedata.category(character) in _CATEGORIES:
        return False
    code = ord(character)
    return not any(low <= code <= high for low, high in _OTHERS)
