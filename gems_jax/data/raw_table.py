"""Tables of raw rows, CSV, JSON lines or parquet, read block by block; rows that cannot be read are quarantined."""

from __future__ import annotations

import csv
import difflib
import gzip
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gems_jax.data.cells import parse_cell
from gems_jax.data.quarantine import Quarantine

# A CSV row must fit into a block.
BLOCK_BYTES = 64 * 2**20
BLOCK_ROWS = 65_536
_KINDS = {".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".json": "json", ".ndjson": "json", ".parquet": "parquet"}


class Batch(NamedTuple):
    """Some rows of a file: their numbers, from 1, and by role a pyarrow array or a list of Python values.

    `names` are those of all columns that the file was seen to have.
    """

    path: Path
    numbers: np.ndarray
    columns: dict[str, Any]
    names: tuple[str, ...] = ()

    def raw(self, row: int) -> dict[str, Any]:
        """One row as it stood there."""
        return {role: _plain(column[row]) for role, column in self.columns.items()}


def find_files(folder: Path, name: str) -> list[Path]:
    """The files that a name stands for: a file, all tables of a folder, or a pattern; sorted.

    Raises:
        FileNotFoundError: there is none.
    """
    place = folder / name
    if place.is_file():
        return [place]
    if place.is_dir():
        found = [path for path in place.iterdir() if path.is_file() and kind_of(path)]
    else:
        found = [path for path in folder.glob(name) if path.is_file()] if set(name) & set("*?[") else []
    if not found:
        raise FileNotFoundError(f"{place} does not exist or holds no table; name a CSV, JSON lines or parquet file")
    return sorted(found)


def kind_of(path: Path) -> str | None:
    """`csv`, `json` or `parquet` by the file's name, gzipped or not."""
    name = path.name.lower().removesuffix(".gz")
    return _KINDS.get(Path(name).suffix)


def read_batches(
    path: Path,
    roles: Mapping[str, str],
    needed: tuple[str, ...],
    quarantine: Quarantine,
    kind: str = "row",
    option: str = "",
) -> Iterator[Batch]:
    """The rows of one file, those columns only that have a role.

    Args:
        path: `.csv`, `.tsv`, `.jsonl`, `.json` (an object a line) or `.parquet`; the text formats also `.gz`.
        roles: role to the column's name.
        needed: roles whose columns must be there.
        quarantine: takes rows that cannot be read.
        kind: of row, in the quarantine.
        option: that says what columns are called, for messages; empty where there is none.

    Yields:
        Batches; a role whose column is missing is missing.

    Raises:
        ValueError: the file is of none of these kinds, is cut off, or lacks a needed column.
    """
    reader = {"csv": _read_csv, "json": _read_json, "parquet": _read_parquet}.get(kind_of(path) or "")
    if reader is None:
        raise ValueError(f"{path} is none of .csv, .tsv, .jsonl, .json and .parquet; rename or convert it")
    yield from reader(path, _Wanted(dict(roles), needed, option), quarantine, kind)


class _Wanted(NamedTuple):
    """Roles of columns: their names, which must be there, and the option that says their names."""

    roles: dict[str, str]
    needed: tuple[str, ...]
    option: str


def missing_column(path: Path, role: str, name: str, found: Sequence[str], option: str) -> ValueError:
    """The error of a column that is not there: what is, what was perhaps meant, and where to name it."""
    near = difflib.get_close_matches(name, found, 1) or difflib.get_close_matches(role, found, 1)
    return ValueError(
        f"{path} has no column {name!r} for {role}; it has {', '.join(map(repr, found[:20]))}"
        + (f". Did you mean {near[0]!r}?" if near else "")
        + (f" Name the right one in {option} ({role}: {near[0] if near else '...'})" if option else "")
    )


def _present(path: Path, wanted: _Wanted, found: list[str]) -> dict[str, str]:
    roles = wanted.roles
    for role in wanted.needed:
        if roles[role] not in found:
            raise missing_column(path, role, roles[role], found, wanted.option)
        if found.count(roles[role]) > 1:
            raise ValueError(f"{path} has {found.count(roles[role])} columns {roles[role]!r}; rename all but one")
    return {role: name for role, name in roles.items() if name in found}


def _read_csv(path: Path, wanted: _Wanted, quarantine: Quarantine, kind: str) -> Iterator[Batch]:
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    delimiter = "\t" if ".tsv" in path.name.lower() else ","
    header = _header(path, delimiter)
    roles = _present(path, wanted, header)
    skipped: list[int] = []

    def skip(row: Any) -> str:
        skipped.append(int(row.number))
        reason = "the number of columns is wrong"
        quarantine.add(kind, f"{path.name}: row {row.number - 1}", reason, row.text)
        return "skip"

    try:
        stream = arrow_csv.open_csv(
            pa.input_stream(str(path), compression="detect"),
            # One thread: only so are the numbers of rows known.
            read_options=arrow_csv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES),
            parse_options=arrow_csv.ParseOptions(
                delimiter=delimiter, newlines_in_values=True, invalid_row_handler=skip
            ),
            # Bytes, because one undecodable cell would otherwise cost the block.
            convert_options=arrow_csv.ConvertOptions(
                include_columns=sorted(set(roles.values())),
                column_types={name: pa.binary() for name in roles.values()},
                strings_can_be_null=True,
                null_values=[""],
            ),
        )
        position = 1  # of the header
        last: Batch | None = None
        for record in stream:
            numbers, position = _numbers(position, record.num_rows, skipped)
            columns = {role: record.column(record.schema.get_field_index(name)) for role, name in roles.items()}
            last = Batch(path, numbers - 1, columns, tuple(header))
            yield last
    except (pa.ArrowInvalid, OSError, EOFError) as error:
        raise ValueError(f"{path} cannot be read as CSV ({error}); is it whole?") from None
    if last is not None and len(last.numbers):
        _check_end(path, last)


def _numbers(position: int, count: int, skipped: list[int]) -> tuple[np.ndarray, int]:
    """Numbers of the next `count` rows of a file behind row `position`, where some were skipped, and the last."""
    gaps = np.asarray([number for number in skipped if number > position], np.int64)
    candidates = np.arange(position + 1, position + 1 + count + len(gaps))
    numbers = candidates[~np.isin(candidates, gaps)][:count]
    return numbers, int(numbers[-1]) if count else position


def _header(path: Path, delimiter: str) -> list[str]:
    if not path.stat().st_size:
        raise ValueError(f"{path} is empty; it needs a header line")
    try:
        with _open(path) as file:
            first = file.readline(BLOCK_BYTES)
        return next(csv.reader(io.StringIO(first.decode("utf-8-sig")), delimiter=delimiter), [])
    except (UnicodeDecodeError, csv.Error, OSError, EOFError) as error:
        raise ValueError(f"{path} has no readable header line ({error}); is it UTF-8?") from None


def _check_end(path: Path, last: Batch) -> None:
    """A quotation mark that is never closed swallows the rest of the file without an error."""
    if path.name.lower().endswith(".gz"):
        return
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 8))
        closed = file.read().rstrip(b"\r\n").endswith(b'"')
    for value in last.raw(len(last.numbers) - 1).values():
        if isinstance(value, str) and value.endswith("\n") and not closed:
            raise ValueError(
                f"{path}: a quotation mark opens in row {last.numbers[-1]} and is never closed; is the file cut off?"
            )


def _read_parquet(path: Path, wanted: _Wanted, quarantine: Quarantine, kind: str) -> Iterator[Batch]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            found = list(file.schema_arrow.names)
            roles = _present(path, wanted, found)
            position = 1
            for record in file.iter_batches(min(BLOCK_ROWS, 8192), columns=sorted(set(roles.values()))):
                numbers = np.arange(position, position + record.num_rows)
                position += record.num_rows
                names = list(record.schema.names)
                columns = {role: record.column(names.index(name)) for role, name in roles.items()}
                yield Batch(path, numbers, columns, tuple(found))
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read as parquet ({error}); is it whole?") from None


def _read_json(path: Path, wanted: _Wanted, quarantine: Quarantine, kind: str) -> Iterator[Batch]:
    found: dict[str, None] = {}
    numbers: list[int] = []
    rows: list[dict[str, Any]] = []
    for number, row in _json_lines(path, quarantine, kind):
        found.update(dict.fromkeys(row))
        numbers.append(number)
        rows.append(row)
        if len(rows) == BLOCK_ROWS:
            yield _json_batch(path, wanted, list(found), numbers, rows)
            numbers, rows = [], []
    if rows:
        yield _json_batch(path, wanted, list(found), numbers, rows)


def _open(path: Path) -> Any:
    return gzip.open(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb")


def _json_batch(path: Path, wanted: _Wanted, found: list[str], numbers: list[int], rows: list[dict[str, Any]]) -> Batch:
    roles = _present(path, wanted, found)
    columns = {role: [row.get(name) for row in rows] for role, name in roles.items()}
    return Batch(path, np.asarray(numbers), columns, tuple(found))


def _json_lines(path: Path, quarantine: Quarantine, kind: str) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with _open(path) as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    row = _json_row(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                except UnicodeDecodeError:
                    reason = "it is not UTF-8"
                except ValueError:
                    reason = "it is malformed JSON"
                else:
                    if isinstance(row, dict):
                        yield number, row
                        continue
                    reason = "it is not an object"
                quarantine.add(kind, f"{path.name}: row {number}", reason, line.decode("utf-8", "replace").rstrip())
    except (OSError, EOFError) as error:
        raise ValueError(f"{path} cannot be read ({error}); is it whole?") from None


def _json_row(line: str) -> Any:
    """An object a line; some published files write Python dictionaries instead."""
    try:
        return json.loads(line)
    except RecursionError:
        raise ValueError("nested too deep") from None
    except ValueError:
        if line.lstrip()[:2] != "{'":
            raise
        return parse_cell(line)


def _plain(value: Any) -> Any:
    if hasattr(value, "as_py"):
        try:
            value = value.as_py()
        except UnicodeDecodeError:
            value = value.as_buffer().to_pybytes()
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value
