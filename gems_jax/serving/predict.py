"""A file of requests answered in the order of its rows, in constant memory; a killed run goes on where it was."""

import contextlib
import gc
import hashlib
import itertools
import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from gems_jax.data.raw.quarantine import shorten
from gems_jax.object_store import StorePath
from gems_jax.serving.answer_lines import AnswerLines
from gems_jax.serving.catalogue import Ranking
from gems_jax.serving.engine import Engine, Sent
from gems_jax.serving.prediction_files import PredictionFiles
from gems_jax.serving.request_files import RequestRow, count_requests, read_requests
from gems_jax.serving.requests import Request, RequestError
from gems_jax.serving.stored_predictions import StoredPredictions
from gems_jax.staging import brought, check_writable

# Rows that are sorted by length and answered together; after each such part what was done is on file.
PART = 1024
# New objects between two looks of the collector of cycles, of which none are made here.
_BETWEEN_COLLECTIONS = (50_000, 20, 50)


class Predicted(NamedTuple):
    """What became of a file of requests.

    Args:
      answered: number of requests.
      left_out: number of rows that are no request that can be answered, by what was wrong with them.
    """

    answered: int
    left_out: Counter[str]


def check_paths(requests: Path | StorePath, out: Path | StorePath) -> None:
    """Checks, before a model is loaded, that requests are there and answers can be written, here or on a store.

    Raises:
      FileNotFoundError: there are no requests.
      ValueError: there are answers already, or the file would be of a kind that is not written.
    """
    if not requests.is_file():
        raise FileNotFoundError(f"--requests {requests} does not exist; give a .jsonl, .csv or .parquet file")
    if out.suffix not in (".jsonl", ".parquet"):
        raise ValueError(f"--out {out} must end in .jsonl or .parquet")
    if out.exists():
        raise ValueError(f"--out {out} is there already: remove it, or choose another file")
    if isinstance(out, StorePath):
        check_writable(out.parent, "--out", stores=True)
    elif not out.parent.is_dir():
        raise FileNotFoundError(f"--out {out}: there is no folder {out.parent}; make it first")


def predict(
    engine: Engine,
    requests: Path | StorePath,
    out: Path | StorePath,
    model: str = "",
    *,
    part: int = PART,
    progress: bool = False,
) -> Predicted:
    """Answers a file of requests.

    A line of the answers has the ``row`` of the request, its ``id`` if it has one, ``items`` and ``notes``, see
    `Answer`. Rows that cannot be answered are in ``<out>.quarantine.jsonl``, each with ``row``, ``reason`` and
    ``detail``.

    Args:
      engine: that answers.
      requests: ``.jsonl``, ``.csv`` or ``.parquet``, see `gems_jax.serving.request_files.read_requests`; here or on an
        object store, of which a copy is read.
      out: file to write, ``.jsonl`` or ``.parquet``; here or on an object store, see `StoredPredictions`.
      model: names the model that answers: what another one has begun is not gone on with.
      part: rows that are answered together; after each part what was done is on file.
      progress: shows requests done, rate and time left.

    Raises:
      FileNotFoundError: there are no requests.
      ValueError: no row can be answered, ``out`` is there already, or another model or other requests have begun it.
    """
    check_paths(requests, out)
    with contextlib.ExitStack() as stack:
        stack.callback(gc.set_threshold, *gc.get_threshold())
        gc.set_threshold(*_BETWEEN_COLLECTIONS)
        here = stack.enter_context(brought(requests))
        origin = {"requests": _digest(here), "model": model, "part": part}
        files = stack.enter_context(_files(out, origin, stack))
        done = files.done
        rows = itertools.islice(read_requests(here), done.rows, None)
        with tqdm(
            total=count_requests(here), initial=done.rows, desc="predict", unit="request", disable=not progress
        ) as bar:
            parts = () if files.ended else _parts(engine, rows, part)
            lines = AnswerLines(engine.catalogue.dataset.items)
            for one in _one_ahead(parts):
                files.add(one.rows, one.lines(engine, lines), one.left_out)
                bar.update(one.rows)
        counts = files.end()
    if not counts.answered and counts.left_out:
        raise ValueError(
            f"none of the {counts.left_out.total():,} rows of {requests} is a request that can be answered; "
            f"{files.quarantine} has the reason for each"
        )
    return Predicted(counts.answered, counts.left_out)


def _files(out: Path | StorePath, origin: Mapping[str, Any], stack: contextlib.ExitStack) -> PredictionFiles:
    if isinstance(out, StorePath):
        return StoredPredictions(out, origin, _folder(stack))
    return PredictionFiles(out, origin)


def _folder(stack: contextlib.ExitStack) -> Path:
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="predict-")))


class _Part(NamedTuple):
    """Rows whose requests are on their way: row and id of each, and the rows that cannot be answered."""

    rows: int
    heads: list[tuple[int, str | int | None]]
    sent: Sent
    left_out: list[dict[str, Any]]

    def lines(self, engine: Engine, lines: AnswerLines) -> list[str]:
        """Of the answers, which this waits for."""
        return lines.of(self.heads, engine.receive(self.sent))


def _parts(engine: Engine, rows: Iterator[RequestRow], size: int) -> Iterator[_Part]:
    while some := list(itertools.islice(rows, size)):
        yield _sent(engine, some)


def _one_ahead(parts: Iterable[_Part]) -> Iterator[_Part]:
    """The parts, each when the next is on its way: the device ranks that one while this one's answers are written."""
    before = None
    for part in parts:
        if before is not None:
            yield before
        before = part
    if before is not None:
        yield before


def _sent(engine: Engine, rows: Sequence[RequestRow]) -> _Part:
    rankings: list[Ranking] = []
    heads: list[tuple[int, str | int | None]] = []
    left_out: list[dict[str, Any]] = []
    for row in rows:
        if row.values is None:
            left_out.append({"row": row.number, "what": row.reason, "reason": row.reason, "detail": row.detail})
            continue
        values = dict(row.values)
        name = values.pop("id", None)
        try:
            if name is not None and not isinstance(name, str | int):
                raise RequestError("id", f"expected text or a whole number, got {name!r}")
            rankings.append(engine.catalogue.look_up(Request.of(values)))
        except RequestError as error:
            detail = shorten(json.dumps(row.values, default=repr))
            left_out.append({"row": row.number, "what": error.field, "reason": str(error), "detail": detail})
            continue
        heads.append((row.number, name))
    return _Part(len(rows), heads, engine.send(rankings), left_out)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
