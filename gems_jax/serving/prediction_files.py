"""The files that answers go to part by part: what is there of them after a kill is gone on with, to the same bytes."""

import itertools
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Self

from gems_jax.object_store import StorePath
from gems_jax.staging import write_json

# Answers of a row group of parquet.
_GROUP = 4096


@dataclass
class Done:
    """How far a run has come.

    Args:
      rows: of the requests, answered or not.
      answered: number of these.
      left_out: number of the others, by what was wrong.
      sizes: bytes of answers and of what was left out, that belong to these rows.
      ended: whether these are all rows.
    """

    rows: int = 0
    answered: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    sizes: tuple[int, int] = (0, 0)
    ended: bool = False


class PredictionFiles:
    """Answers and quarantine under hidden names, and beside them how far both have come; renamed when all is there.

    Args:
      out: the file of answers.
      origin: what they are answers to, and whose; JSON values.
      shown: names of ``out`` and of the file beside it, for messages; ``None``: those.

    Attributes:
      done: how far an earlier run has come.
      quarantine: the file of rows that were left out.

    Raises:
      ValueError: what is there was begun from another origin, or is damaged.
    """

    def __init__(self, out: Path, origin: Mapping[str, Any], shown: tuple[object, object] | None = None):
        self._out, self._origin = out, dict(origin)
        self._targets = (out, out.with_name(f"{out.name}.quarantine.jsonl"))
        self.quarantine: Path | StorePath = self._targets[1]
        self._parts = tuple(target.with_name(f".{target.name}.part") for target in self._targets)
        self._state = out.with_name(f".{out.name}.state.json")
        self._shown_out, self._shown_state = shown or (out, self._state)
        self._files: tuple[BinaryIO, ...] = ()
        self.done = self._read()

    @property
    def ended(self) -> bool:
        """Whether all rows are done, and only names are missing."""
        return self.done.ended

    def __enter__(self) -> Self:
        if not self.ended:
            self._files = tuple(self._open(path, size) for path, size in zip(self._parts, self.done.sizes, strict=True))
        return self

    def __exit__(self, *exc: object) -> None:
        for file in self._files:
            file.close()

    def add(self, rows: int, answered: Sequence[str], left_out: Sequence[Mapping[str, Any]]) -> None:
        """Writes a part, and then that it is there.

        Args:
          rows: number of rows of it.
          answered: lines of answers.
          left_out: lines of the quarantine, JSON values; what they have under ``"what"`` is counted.
        """
        self.done.left_out.update(str(line["what"]) for line in left_out)
        kept = [json.dumps({name: value for name, value in line.items() if name != "what"}) for line in left_out]
        for file, lines in zip(self._files, (answered, kept), strict=True):
            if not lines:
                continue
            file.write("".join(line + "\n" for line in lines).encode())
            file.flush()
            os.fsync(file.fileno())
        self.done.rows += rows
        self.done.answered += len(answered)
        self.done.sizes = (self._files[0].tell(), self._files[1].tell())
        self._write()

    def end(self) -> Done:
        """Gives the files their names; without an answer there is no file of answers. Returns what was counted."""
        if not self.ended:
            self.done.ended = True
            self._write()
        answers, left_out = self._parts
        if self.done.left_out and left_out.exists():
            os.replace(left_out, self._targets[1])
        if self.done.answered and answers.exists():
            if self._out.suffix == ".parquet":
                _write_parquet(answers, self._out)
            else:
                os.replace(answers, self._out)
        for path in (*self._parts, self._state):
            path.unlink(missing_ok=True)
        return self.done

    def _open(self, path: Path, size: int) -> BinaryIO:
        file = path.open("r+b" if path.exists() else "w+b")
        there = file.seek(0, os.SEEK_END)
        if there < size:
            file.close()
            raise ValueError(
                f"{path} has {there:,} bytes, fewer than were written: remove {self._shown_state} to begin anew"
            )
        file.truncate(size)
        file.seek(size)
        return file

    def _read(self) -> Done:
        if not self._state.exists():
            return Done()
        try:
            state = json.loads(self._state.read_text(encoding="utf-8"))
            origin, done = state["origin"], state["done"]
            done = Done(**done | {"left_out": Counter(done["left_out"]), "sizes": tuple(done["sizes"])})
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{self._shown_state} is damaged ({error}): remove it to begin anew") from None
        other = [name for name in self._origin if origin.get(name) != self._origin[name]]
        if other:
            raise ValueError(
                f"{self._shown_out} was begun with another value of {', '.join(other)}: remove {self._shown_state} to "
                "begin anew, or choose another --out"
            )
        return done

    def _write(self) -> None:
        write_json(self._state, {"origin": self._origin, "done": vars(self.done)})


def _write_parquet(lines: Path, out: Path) -> None:
    """Answers as JSON lines, as parquet; whole or not at all."""
    import pyarrow as pa
    from pyarrow import parquet

    item = pa.struct([("item_id", pa.string()), ("title", pa.string()), ("score", pa.float64()), ("known", pa.bool_())])
    schema = pa.schema(
        [("row", pa.int64()), ("id", pa.string()), ("items", pa.list_(item)), ("notes", pa.list_(pa.string()))]
    )
    unfinished = out.with_name(f".{out.name}.unfinished")
    with lines.open(encoding="utf-8") as file, parquet.ParquetWriter(unfinished, schema) as writer:
        rows = _with_text_ids(file)
        while some := list(itertools.islice(rows, _GROUP)):
            writer.write_table(pa.Table.from_pylist(some, schema))
    os.replace(unfinished, out)


def _with_text_ids(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        values = json.loads(line)
        name = values.get("id")
        yield values | {"id": None if name is None else str(name)}
