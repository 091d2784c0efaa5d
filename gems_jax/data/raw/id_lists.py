"""Cells that hold one id or several: as lists, as lists written in text, or divided by marks."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from gems_jax.data.raw.blank import MISSING_WORDS, without_words
from gems_jax.data.raw.cells import parse_cell
from gems_jax.data.raw.columns import as_written, id_text, is_list, is_textual
from gems_jax.data.raw.ids import KnownIds
from gems_jax.data.raw.ragged import Ragged

_SEPARATORS = r"[\s,;|]+"
# One of them alone, those first that ids hold less often.
_SINGLE = ("|", ";", ",", "\t", "\n", " ")
_MARKS = r"[\s,;|\[\](){}'\"]"
_STRUCTURE = r"[\[\](){}'\"]"


class Division(NamedTuple):
    """Where a cell of plain text is divided into ids.

    Args:
      separator: text between ids; empty: a cell is one id; None: spaces, commas, semicolons and bars may be, and
        lists may be written as JSON, Python and numpy print them.
      known: ids that exist: a cell that is one is not divided, others where it gives the most of them.
      single: whether a cell of which nothing is known is one id.
    """

    separator: str | None = None
    known: KnownIds | None = None
    single: bool = False


class IdLists(NamedTuple):
    """Lists of ids, one a cell, as indices into an array of all ids.

    Attributes:
      indices: into ``texts``, by cell.
      texts: pyarrow string array, all ids one after the other.
      bad: bool, by cell: whether it is no list.
      divided: bool, by cell: whether it was divided by a guess.
      whole: bool, by cell: whether it is taken for one id though it holds a mark that could divide it.
    """

    indices: Ragged
    texts: Any
    bad: np.ndarray
    divided: np.ndarray
    whole: np.ndarray


def as_lists(column: Any) -> tuple[Ragged, Any, np.ndarray]:
    """Lists of ids: indices into a pyarrow string array of all ids one after the other, and cells that are no list.

    A cell is a list, the text of one (JSON, Python, numpy), or ids with spaces, commas, semicolons or bars between.
    """
    lists = read_lists(column, Division())
    return lists.indices, lists.texts, lists.bad


def read_lists(column: Any, division: Division, missing: tuple[str, ...] = MISSING_WORDS) -> IdLists:
    """A column of ids or lists of ids.

    Args:
      column: pyarrow array or list of Python values.
      division: of cells that are text.
      missing: words for nothing.
    """
    if isinstance(column, list):
        if any(isinstance(value, list | tuple) for value in column):
            return _from_python(column, division, missing)
    elif is_list(column):
        return _from_arrow_lists(column, missing)
    elif not is_textual(column):
        division = Division("")  # numbers
    text, bad = as_written(column)
    return _from_text(without_words(text, missing)[0], bad, division)


def _from_arrow_lists(column: Any, missing: tuple[str, ...]) -> IdLists:
    import pyarrow.compute as pc

    flat, flat_bad = as_written(column.flatten())
    flat = without_words(flat, missing)[0]
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    lists = Ragged.from_lengths(np.arange(len(flat)), lengths)
    wrong = flat_bad | np.asarray(flat.is_null())
    none = np.zeros(len(column), bool)
    return IdLists(lists, flat, np.bincount(lists.row_of[wrong], minlength=len(column)) > 0, none, none)


def _from_text(text: Any, bad: np.ndarray, division: Division) -> IdLists:
    import pyarrow.compute as pc

    marked = np.asarray(pc.fill_null(pc.match_substring_regex(text, _MARKS), False))
    none = np.zeros(len(text), bool)
    if division.separator == "" or not marked.any() and division.separator is None:
        lengths = (~np.asarray(text.is_null())).astype(np.int64)
        return IdLists(Ragged.from_lengths(np.arange(int(lengths.sum())), lengths), text.drop_null(), bad, none, none)
    plain = pc.utf8_trim(text, "[]")
    guessed = division.separator is None and not division.single and not (division.known and division.known.marked)
    if guessed and not pc.any(pc.match_substring_regex(plain, _STRUCTURE)).as_py():
        parts = _parts(plain)
        lengths = pc.list_value_length(parts).to_numpy(zero_copy_only=False)
        lists = Ragged.from_lengths(np.arange(int(lengths.sum())), lengths)
        bracketed = np.asarray(pc.fill_null(pc.starts_with(text, "["), False))
        return IdLists(lists, parts.flatten(), bad, (lengths > 1) & ~bracketed, none)
    return _one_by_one(text.to_pylist(), bad, division)


def _parts(text: Any) -> Any:
    """Ids of every cell; an empty cell has none."""
    import pyarrow as pa
    import pyarrow.compute as pc

    marked = pc.fill_null(pc.utf8_trim(text, " \t\r\n,;|"), "")
    parts = pc.split_pattern_regex(marked, _SEPARATORS)
    empty = pc.equal(marked, "")
    if not pc.any(empty).as_py():
        return parts
    lengths = np.where(np.asarray(empty), 0, pc.list_value_length(parts).to_numpy(zero_copy_only=False))
    flat = parts.flatten()
    flat = flat.filter(pc.not_equal(flat, ""))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), flat)


def _from_python(column: list[Any], division: Division, missing: tuple[str, ...]) -> IdLists:
    cells: list[Any] = []
    words = frozenset(missing)
    for value in column:
        if isinstance(value, list | tuple):
            texts = as_written(list(value))[0].to_pylist()
            cells.append(None if any(text is None or text in words for text in texts) else texts)
        else:
            text = id_text(value)
            cells.append(None if text is False else "" if text is None or text in words else text)
    bad = np.asarray([cell is None for cell in cells], bool)
    return _one_by_one(cells, bad, division)


def _one_by_one(cells: list[Any], bad: np.ndarray, division: Division) -> IdLists:
    import pyarrow as pa

    bad, divided, whole = bad.copy(), np.zeros(len(cells), bool), np.zeros(len(cells), bool)
    flat: list[str] = []
    lengths = np.zeros(len(cells), np.int64)
    read = _remembering(division)
    for row, cell in enumerate(cells):
        if isinstance(cell, list):
            ids: list[str] | None = cell
        elif not cell:
            continue
        else:
            ids, divided[row], whole[row] = read(cell)
        if ids is None:
            bad[row] = True
        else:
            flat.extend(ids)
            lengths[row] = len(ids)
    return IdLists(Ragged.from_lengths(np.arange(len(flat)), lengths), pa.array(flat, pa.string()), bad, divided, whole)


_Read = tuple[list[str] | None, bool, bool]


def _remembering(division: Division) -> Callable[[str], _Read]:
    """Reads a cell; what was read before is not read again."""
    before: dict[str, _Read] = {}

    def read(cell: str) -> _Read:
        if cell not in before:
            before[cell] = _read(cell, division)
        return before[cell]

    return read


def _read(cell: str, division: Division) -> _Read:
    """Ids of a cell, None where it is no list; whether it was divided by a guess; whether that was thought of."""
    separator, known, single = division
    if separator is not None:
        parts = cell.split(separator if separator.strip() else None) if separator else [cell]
        return [part.strip() for part in parts if part.strip()], False, False
    if known is not None and known.find(cell) is not None:
        return [cell], False, False
    if cell[0] in "[({'\"":
        written = _written(cell, known)
        if written is not None or cell[0] in "[({":
            return written, False, False
    if not re.search(_MARKS, cell):
        return [cell], False, False
    parts = _divided(cell, known) or ([cell] if single or (known is not None and known.marked) else _words(cell))
    return parts, len(parts) > 1, len(parts) == 1 and bool(re.search(_SEPARATORS, cell))


def _written(cell: str, known: KnownIds | None) -> list[str] | None:
    """Ids of a list written as text; None where it is none."""
    if cell[0] == "{" and cell[-1] == "}" and ":" not in cell:
        # Arrays as PostgreSQL prints them, sets as Python does.
        if '"' in cell and "'" not in cell:
            return [part.strip() for part in next(csv.reader([cell[1:-1]], skipinitialspace=True))]
        cell = f"[{cell[1:-1]}]"
    inside = cell.removeprefix("[").removesuffix("]")
    if cell[0] == "[" and not re.search(_STRUCTURE, inside):
        return _divided(inside.strip(), known) or _words(inside)
    for text in (cell, f"[{cell}]"):
        try:
            value = parse_cell(text)
        except ValueError:
            continue
        ids = [id_text(part) for part in (value if isinstance(value, list | tuple) else [value])]
        return None if any(not part for part in ids) else [str(part) for part in ids]
    return None


def _divided(cell: str, known: KnownIds | None) -> list[str] | None:
    """The cell divided where it gives the largest share of known ids, of equal shares the fewest; None without one."""
    if known is None:
        return None
    ways = [[part.strip() for part in cell.split(mark) if part.strip()] for mark in _SINGLE if mark in cell]
    ways += [[part.strip() for part in re.split(r"[,;|\t\n]+", cell) if part.strip()], _words(cell)]
    shares = [sum(known.find(part) is not None for part in way) / max(len(way), 1) for way in ways]
    best = max(range(len(ways)), key=lambda way: (shares[way], -len(ways[way])))
    return ways[best] if shares[best] > 0 else None


def _words(cell: str) -> list[str]:
    return [word for word in re.split(_SEPARATORS, cell) if word]
