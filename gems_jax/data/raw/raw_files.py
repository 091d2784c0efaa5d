"""Files that a name stands for, and their bytes block by block, decompressed and bounded."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from gems_jax.data.raw.options import Reading
from gems_jax.first_few import first_few

BLOCK_BYTES = 16 * 2**20
# However well it is compressed, this much is always read.
ALWAYS_READ = 64 * 2**20
_KINDS = {".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".json": "json", ".ndjson": "json", ".parquet": "parquet"}
_COMPRESSED = (".gz", ".bz2", ".zst", ".zstd", ".lz4")
_CODECS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"\x04\x22\x4d\x18": "lz4"}
# The first bytes of files of other kinds.
_FOREIGN = {
    b"PK\x03\x04": "a zip archive (as Excel workbooks are); unpack it or save it as CSV",
    b"\xfd7zXZ\x00": "compressed by xz; compress it by gzip or zstd instead",
    b"\xff\xfe\0\0": "UTF-32 text; save it as UTF-8",
    b"\xff\xfe": "UTF-16 text; save it as UTF-8",
    b"\xfe\xff": "UTF-16 text; save it as UTF-8",
    b"PAR1": "a parquet file; name it .parquet",
    b"ARROW1": "an Arrow file; save it as parquet",
    b"%PDF-": "a PDF document; save its text as UTF-8",
}
_BOM = b"\xef\xbb\xbf"


class Limits(NamedTuple):
    """How large a row may be in bytes, and how many times its own size a compressed file may hold.

    ``option`` is what the two options' names begin with; None where a source has no such options.
    """

    row: int
    expansion: int
    option: str | None

    @classmethod
    def of(cls, reading: Reading | None, option: str | None = "files.") -> Limits:
        """Those of the options, or the defaults."""
        options = reading or Reading()
        return cls(options.max_row_bytes, options.max_expansion, None if reading is None else option)

    @property
    def too_long(self) -> str:
        """The reason why a longer row is left out."""
        name = f" ({self.option}max_row_bytes)" if self.option is not None else ""
        return f"the row is longer than {self.row:,} bytes{name}"

    def allowed(self, path: Path) -> int:
        """Bytes that a compressed file may hold."""
        return max(ALWAYS_READ, self.expansion * path.stat().st_size)

    def too_large(self, path: Path, size: int) -> ValueError:
        """The error of a compressed file that holds more."""
        name = f"; raise {self.option}max_expansion where it is meant" if self.option is not None else ""
        return ValueError(
            f"{path} has {path.stat().st_size:,} bytes and holds {size:,} or more once it is decompressed, more than "
            f"{self.expansion} times as many{name}"
        )


def local_name(name: str) -> str:
    """A ``file://`` address as the path it stands for, ``~`` as the home folder; other names as they are.

    Raises:
      ValueError: the address names another machine or no absolute path.

    Example:
      >>> local_name("file:///data/my%20log.csv"), local_name("log.csv")
      ('/data/my log.csv', 'log.csv')
    """
    if name.startswith("file:"):
        rest = name.removeprefix("file:")
        host, slash, path = rest[2:].partition("/") if rest.startswith("//") else ("", "/", rest.removeprefix("/"))
        if host not in ("", "localhost") or not slash or rest[:1] != "/":
            raise ValueError(f"{name} names no absolute path on this machine; write it as file:///folder/file.csv")
        return "/" + unquote(path)
    return os.path.expanduser(name)


def find_files(folder: Path, name: str) -> list[Path]:
    """The files that a name stands for: a file, all tables of a folder, or a pattern; sorted.

    Args:
      folder: what names that are not absolute are under.
      name: a path, ``file://`` address or pattern (``*``, ``?``, ``[...]``, ``**``).

    Raises:
      FileNotFoundError: there is none.
      ValueError: the name is on an object store.
    """
    return [Path(path) for path in _find(folder, name, _is_table, "table", "name a CSV, JSON or parquet file")]


def find_text(name: str) -> list[Path]:
    """The same for text: tables, ``.txt`` files, or any file that is named itself or fits a pattern."""
    return [Path(path) for path in _find(Path(), name, _is_text, "text", "name a .txt, .jsonl, .parquet or CSV file")]


def _find(folder: Path, name: str, wanted: Callable[[Path], bool], what: str, remedy: str) -> list[str]:
    local = local_name(str(name))
    if "://" in local:
        raise ValueError(f"{name} is not on this machine; raw files are read here: copy them, name the copy")
    target = folder / local
    if target.is_file():
        return [str(target)]
    if target.is_dir():
        entries = sorted(target.iterdir())
        files = [str(path) for path in entries if path.is_file() and wanted(path)]
        if not files:
            there = first_few((path.name + "/" * path.is_dir() for path in entries), 10) or "nothing"
            raise FileNotFoundError(f"{target} is a folder without a {what}; it holds {there}; {remedy}, or a pattern")
        return files
    if set(local) & set("*?["):
        pattern = _literal_folders(os.path.join(folder, local))
        files = sorted(path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))
        if not files:
            raise FileNotFoundError(f"{target} does not exist: no file fits the pattern; {remedy}")
        return files
    if target.exists():
        raise ValueError(f"{target} is neither a file nor a folder; {remedy}")
    raise FileNotFoundError(f"{target} does not exist; {remedy}, a folder of such files or a pattern")


def _literal_folders(pattern: str) -> str:
    """A pattern in which folders that are there by their very name, such as ``run[1]``, stand for themselves.

    Example:
      >>> import tempfile
      >>> folder = Path(tempfile.mkdtemp()) / "run[1]"
      >>> folder.mkdir()
      >>> _literal_folders(f"{folder}/*.csv").endswith("/run[[]1]/*.csv")
      True
    """
    folder, _, rest = pattern.rpartition("/")
    while folder and not os.path.isdir(folder):
        folder, _, name = folder.rpartition("/")
        rest = f"{name}/{rest}"
    return f"{glob.escape(folder)}/{rest}" if folder else pattern


def _is_table(path: Path) -> bool:
    # Names like these are those of file systems and of jobs: ._a.csv, _SUCCESS.
    return not path.name.startswith((".", "_")) and kind_of(path) is not None


def _is_text(path: Path) -> bool:
    return _is_table(path) or (not path.name.startswith((".", "_")) and _ending(path) == ".txt")


def _ending(path: Path) -> str:
    name = path.name.lower()
    for ending in _COMPRESSED:
        name = name.removesuffix(ending)
    return Path(name).suffix


def kind_of(path: Path) -> str | None:
    """``csv``, ``json`` or ``parquet`` by the file's name, compressed or not."""
    return _KINDS.get(_ending(path))


def is_tab_separated(path: Path) -> bool:
    """Whether the name says so."""
    return _ending(path) == ".tsv"


def codec_of(beginning: bytes) -> str | None:
    """The compression of a file, told by its first bytes."""
    if beginning[:3] == b"BZh" and beginning[4:10] == b"1AY&SY":
        return "bz2"
    return next((codec for mark, codec in _CODECS.items() if beginning.startswith(mark)), None)


def read_blocks(path: Path, limits: Limits, size: int | None = None) -> Iterator[bytes]:
    """The bytes of a file, decompressed where it is compressed, without a byte order mark.

    Args:
      path: a file.
      limits: of what it may hold.
      size: bytes a block, `BLOCK_BYTES` if None.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is cut off, of another kind, or holds more than it may.
    """
    import pyarrow as pa

    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    with path.open("rb") as file:
        beginning = file.read(16)
    _refuse_foreign(path, beginning)
    codec, total, size = codec_of(beginning), 0, size or BLOCK_BYTES
    allowed = limits.allowed(path)
    try:
        with pa.input_stream(str(path), compression=codec) as stream:
            # The first block has all of a mark.
            while block := stream.read(size if total else max(size, len(beginning))):
                if not total:
                    _refuse_foreign(path, block)
                    _refuse_wide(path, block)
                    total = len(block)
                    while block.startswith(_BOM):  # files that were joined or saved twice have two
                        block = block[len(_BOM) :]
                else:
                    total += len(block)
                if codec and total > allowed:
                    raise limits.too_large(path, total)
                yield block
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path} cannot be read ({error}); is it whole?") from None


def _refuse_foreign(path: Path, beginning: bytes) -> None:
    for mark, what in _FOREIGN.items():
        if beginning.startswith(mark):
            raise ValueError(f"{path} is {what}")


def _refuse_wide(path: Path, beginning: bytes) -> None:
    """Latin letters in UTF-16 have a NUL beside each: so it is told without a byte order mark."""
    some = beginning[:64]
    if len(some) >= 4 and (not any(some[::2]) or not any(some[1::2])):
        raise ValueError(f"{path} seems to be UTF-16 text, as every other byte is NUL; save it as UTF-8")


def split_lines(blocks: Iterable[bytes], limit: int) -> Iterator[tuple[bytes, bool]]:
    """Lines without their line feeds; of one that is longer than ``limit`` its beginning alone, and True.

    Example:
      >>> list(split_lines([b"on", b"e\\ntwo and", b" more\\n", b"last"], 5))
      [(b'one', False), (b'two a', True), (b'last', False)]
    """
    pieces: list[bytes] = []
    length = 0

    def line() -> tuple[bytes, bool]:
        return b"".join(pieces)[:limit], length > limit

    for block in blocks:
        *ended, rest = block.split(b"\n")
        for part in ended:
            pieces.append(part)
            length += len(part)
            yield line()
            pieces, length = [], 0
        if length <= limit:
            pieces.append(rest)
        length += len(rest)
    if length:
        yield line()
