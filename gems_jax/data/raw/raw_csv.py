"""Rows of delimited text (CSV, TSV) block by block: records are told apart here, their columns by pyarrow."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from gems_jax.data.raw.csv_header import Header, read_header
from gems_jax.data.raw.csv_records import (
    CsvRecords,
    SwallowedError,
    UnclosedError,
    line_ends,
    split_plain,
    split_quoted,
)
from gems_jax.data.raw.csv_rows import RowShapes, parse
from gems_jax.data.raw.raw_files import read_blocks
from gems_jax.data.raw.raw_rows import RawRows, ReadRequest
from gems_jax.data.raw.reasons import WIDTH

_AFTER_QUOTE = "text follows the quotation mark that closes a column"
_LINE_BREAKS = (10, 13)
# Rows by which the columns are known.
_SAMPLE = 2000
# A column in quotation marks with doubled ones inside, as quoting writes them.
_WRITTEN_QUOTED = rb'(?:^|[\r\n]|%s)"[^"\r\n]*(?:""[^"\r\n]*)+"(?=[\r\n]|%s|$)'


class _Block(NamedTuple):
    """Whole records: their bytes, where each ends, those that are malformed, and the line of the file they begin in.

    Without ends it is the beginning of a record that is too long.
    """

    data: bytes
    records: CsvRecords
    line: int


def read_csv(request: ReadRequest) -> Iterator[RawRows]:
    """The rows of one file; malformed ones are quarantined, and each record of the file is one or the other.

    Raises:
      ValueError: the file has no header or lacks a needed column, a quotation mark swallows rows, or it is cut off.
    """
    blocks = read_blocks(request.path, request.limits)
    first = next(blocks, b"")
    while len(line_ends(first, False)) < 2 and len(first) <= request.limits.row and (more := next(blocks, b"")):
        first += more
    header = read_header(request.path, first, request.reading, [request.roles[role] for role in request.needed])
    roles = request.present(header.names)
    # Who names the quoting is believed.
    shapes = RowShapes(len(header.names), header.delimiter) if request.reading.quoting is None else None
    row = 0
    for block in _record_blocks(request, header, itertools.chain([first[header.end :]], blocks)):
        if not len(block.records.ends):
            row += 1
            request.leave_out(row, request.limits.too_long, block.data.decode("utf-8", "replace"))
            continue
        if header.quoted and shapes is not None:
            _check_swallowed(request, header, shapes, block)
        elif request.reading.quoting is None:
            _check_plain(request, header, block)
        data, numbers, row = _clean(request, block, row)
        if len(numbers):
            yield _parse(request, header, roles, data, numbers)


def _record_blocks(request: ReadRequest, header: Header, blocks: Iterator[bytes]) -> Iterator[_Block]:
    limit, line, rest, skipping = request.limits.row, header.line, b"", False
    for block in itertools.chain(blocks, [b""]):
        last = not block
        data = rest + block
        if skipping:
            ends = line_ends(data, last)
            if not len(ends):
                continue
            data, line, skipping = data[ends[0] :], line + 1, False
        records = _split(request, header, data, last, line)
        end = int(records.ends[-1]) if len(records.ends) else 0
        if end:
            yield _Block(data[:end], records, line)
            line += len(line_ends(data[:end], True))
        rest = data[end:]
        if len(rest) > limit:
            if header.quoted and len(line_ends(rest, False)):
                raise _unclosed(request, line, f"within {limit:,} bytes")
            yield _Block(rest[:4096], CsvRecords(np.zeros(0, np.int64), []), line)
            rest, skipping = b"", True


def _split(request: ReadRequest, header: Header, data: bytes, last: bool, line: int) -> CsvRecords:
    if not header.quoted:
        return split_plain(data, last)
    try:
        return split_quoted(data, header.delimiter.encode(), last)
    except UnclosedError as error:
        raise _unclosed(request, line + _lines(data[: error.position]), "") from None
    except SwallowedError as error:
        begin, end = line + _lines(data[: error.position]), line + _lines(data[: error.end])
        raise ValueError(
            f"{request.path}: the quotation mark that opens in line {begin} is closed in the middle of a column of "
            f"line {end}, so rows between them would be lost; {_remedy(request, begin)}"
        ) from None


def _lines(data: bytes) -> int:
    """Line breaks in the beginning of a block that ends inside of a line."""
    return len(line_ends(data + b".", False))


def _unclosed(request: ReadRequest, line: int, where: str) -> ValueError:
    return ValueError(
        f"{request.path}: a quotation mark opens in line {line} and is never closed{' ' * bool(where)}{where}; is the "
        f"file cut off? Otherwise {_remedy(request, line)}"
    )


def _remedy(request: ReadRequest, line: int) -> str:
    if request.limits.option is None:
        return f"repair line {line}"
    return (
        f"where the file is written without quoting, set {request.limits.option}quoting to none; where a single mark "
        f"is wrong, repair line {line}"
    )


def _check_swallowed(request: ReadRequest, header: Header, shapes: RowShapes, block: _Block) -> None:
    """Columns of several lines are text; lines in them that look like rows of this file are rows that got lost."""
    ends, lines = block.records.ends, line_ends(block.data, True)
    starts = np.concatenate([[0], ends[:-1]])
    if shapes.learnt < _SAMPLE or len(ends) < len(lines):
        sample = zip(starts[:_SAMPLE].tolist(), ends[:_SAMPLE].tolist(), strict=True)
        shapes.learn(parse(block.data[start:end], header.delimiter, True) for start, end in sample)
    begins = np.concatenate([[0], lines[:-1]])
    # Lines that begin inside of a record.
    inner = np.flatnonzero(~np.isin(begins, starts))
    for line in inner.tolist():
        text = block.data[begins[line] : lines[line]].decode("utf-8", "replace")
        if shapes.fits(text):
            record = int(np.searchsorted(ends, begins[line], side="right"))
            begin = block.line + int(np.searchsorted(begins, starts[record]))
            trust = "" if request.limits.option is None else (
                f"; where the column is meant to have these lines, set {request.limits.option}quoting to rfc4180"
            )  # fmt: skip
            raise ValueError(
                f"{request.path}: a quotation mark that opens in line {begin} is closed lines later, and line "
                f"{block.line + line} in between looks like a row of its own ({text.strip()[:80]!r}), which would be "
                f"lost; {_remedy(request, begin)}{trust}"
            )


def _check_plain(request: ReadRequest, header: Header, block: _Block) -> None:
    """Text that is read without quoting must not show that it was written with it."""
    if b'""' not in block.data or request.limits.option is None:
        return
    mark = re.escape(header.delimiter.encode())
    match = re.search(_WRITTEN_QUOTED % (mark, mark), block.data)
    if match:
        line = block.line + _lines(block.data[: match.end()])
        text = match.group().strip(b"\r\n" + header.delimiter.encode()).decode("utf-8", "replace")
        raise ValueError(
            f"{request.path}: line {line} has a column in quotation marks with doubled ones inside ({text[:80]}), as "
            f"quoting writes it, but .tsv files are read without quoting; set {request.limits.option}quoting to "
            "rfc4180, or to none where the marks are meant"
        )


def _clean(request: ReadRequest, block: _Block, row: int) -> tuple[bytes, np.ndarray, int]:
    """The block without blank, malformed and too long records; the others' numbers behind ``row``, and the last."""
    data, ends = np.frombuffer(block.data, np.uint8), block.records.ends
    starts = np.concatenate([[0], ends[:-1]])
    full = ~np.isin(data[starts], _LINE_BREAKS)
    numbers = row + np.cumsum(full)
    problems = {}
    for record in block.records.malformed:
        hint = f"; is {request.limits.option}quoting none?" if request.limits.option is not None else ""
        if b'\\"' in block.data[starts[record] : ends[record]]:
            hint = '; marks are to be doubled (""), not written with a backslash (in Spark, option escape)'
        problems[record] = _AFTER_QUOTE + hint
    problems |= dict.fromkeys(np.flatnonzero(ends - starts > request.limits.row).tolist(), request.limits.too_long)
    for record, reason in sorted(problems.items()):
        raw = block.data[starts[record] : ends[record]]
        request.leave_out(int(numbers[record]), reason, raw.decode("utf-8", "replace").rstrip("\r\n"))
    last = int(numbers[-1])
    full[list(problems)] = False
    if full.all():
        return block.data, numbers, last
    # Runs of records that stay.
    edges = np.flatnonzero(np.diff(np.concatenate([[False], full, [False]])))
    kept = b"".join(block.data[starts[first] : ends[stop - 1]] for first, stop in edges.reshape(-1, 2).tolist())
    return kept, numbers[full], last


def _parse(request: ReadRequest, header: Header, roles: dict[str, str], data: bytes, numbers: np.ndarray) -> RawRows:
    import pyarrow as pa
    from pyarrow import csv

    keep = np.ones(len(numbers), bool)

    def skip(row: Any) -> str:
        keep[row.number - 1] = False
        marked = not header.quoted and '"' in row.text and request.limits.option is not None
        hint = f"; it has quotation marks, which {request.limits.option}quoting: rfc4180 would read" if marked else ""
        request.leave_out(int(numbers[row.number - 1]), WIDTH + hint, row.text)
        return "skip"

    try:
        table = csv.read_csv(
            pa.py_buffer(data),
            # One thread: only so are the numbers of rows known.
            read_options=csv.ReadOptions(column_names=header.names, use_threads=False, block_size=len(data) + 1),
            parse_options=csv.ParseOptions(
                delimiter=header.delimiter,
                quote_char='"' if header.quoted else False,
                newlines_in_values=header.quoted,
                invalid_row_handler=skip,
            ),
            # Bytes, because one undecodable cell would otherwise cost the block.
            convert_options=csv.ConvertOptions(
                include_columns=sorted(set(roles.values())),
                column_types={name: pa.binary() for name in roles.values()},
                strings_can_be_null=True,
                null_values=[""],
            ),
        )
    except pa.ArrowException as error:
        raise ValueError(f"{request.path} cannot be read as CSV ({error}); is it whole?") from None
    if table.num_rows != keep.sum():
        raise ValueError(
            f"{request.path}: rows {numbers[0]} to {numbers[-1]} are {keep.sum():,}, but {table.num_rows:,} were read; "
            "are there stray quotation marks?"
        )
    columns = {role: table.column(name).combine_chunks() for role, name in roles.items()}
    return RawRows(request.path, numbers[keep], columns, tuple(header.names))
