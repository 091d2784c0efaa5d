"""General text: files, or the Python reference that every Python installation carries."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gems_jax.checksums import sums_of
from gems_jax.data.raw.raw_files import find_text
from gems_jax.data.text.plain_text import plain_reader
from gems_jax.data.text.text_lines import lines_of

PYDOC = "pydoc"
_HELDOUT_SHARE = 0.12


def read_lines(
    source: str | Path, split: str = "train", field: str = "text", say: Callable[[str], None] = print
) -> list[str]:
    """Non-empty lines of a text.

    Args:
      source: ``"pydoc"``, or a file, a folder of files or a pattern (which is one split: name other files for another).
        Plain text in UTF-8, or rows of JSON, parquet or CSV; see `gems_jax.data.text.text_lines.lines_of`.
      split: ``"train"`` or ``"heldout"``, for ``"pydoc"``: topics are split by their name, and a paragraph of a
        held-out topic never occurs in the training text.
      field: of rows, that holds their text.
      say: takes a line about each file of which rows are left out.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a file holds no text, is of another kind or has no such field, or the split is unknown.
    """
    if split not in ("train", "heldout"):
        raise ValueError(f"split must be 'train' or 'heldout', got {split!r}")
    if str(source) == PYDOC:
        return _pydoc_lines(split)
    try:
        lines = list(lines_of(str(source), field, say))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"general text {error}, or {PYDOC!r}") from None
    except ValueError as error:
        raise ValueError(f"general text {error}") from None
    if not lines:
        raise ValueError(f"general text {source} holds no text")
    return lines


def shared_text(train: str | Path, heldout: str | Path) -> str:
    """Says which files of a held-out text are in the other one; empty: none is.

    Files are compared by their content.

    Args:
      train: as of `read_lines`.
      heldout: the text that is to be told apart.

    Example:
      >>> shared_text("pydoc", "pydoc")  # topics of its own each
      ''
    """
    if PYDOC in (str(train), str(heldout)):
        return ""
    try:
        there, here = find_text(str(train)), find_text(str(heldout))
    except (FileNotFoundError, ValueError):
        return ""  # the one that is gone is not read
    sizes = {path.stat().st_size for path in there} & {path.stat().st_size for path in here}
    sums = {_sum(path) for path in there if path.stat().st_size in sizes}
    both = [path for path in here if path.stat().st_size in sizes and _sum(path) in sums]
    if not both:
        return ""
    return (
        f"{len(both):,} of {len(here):,} files of text.heldout are in text.train, too ({both[0]}): drift is measured "
        "on text that the null space protects and the base may have learnt, and says little of other text; name another"
    )


def _sum(path: Path) -> str:
    return sums_of(path.parent, [path.name])[path.name]


def _pydoc_lines(split: str) -> list[str]:
    from pydoc_data.topics import topics

    total = sum(map(len, topics.values()))
    heldout_size = 0
    paragraphs: dict[str, list[str]] = {"train": [], "heldout": []}
    for name in sorted(topics, key=lambda name: zlib.crc32(name.encode())):
        size = len(topics[name])
        # Long topics train: a few of them would make up all of the held-out text.
        held = size <= total * _HELDOUT_SHARE / 4 and heldout_size + size <= total * _HELDOUT_SHARE
        heldout_size += size * held
        part = "heldout" if held else "train"
        paragraphs[part] += [" ".join(text.split()) for text in topics[name].split("\n\n")]
    # Topics quote each other: each paragraph once, and in one split only.
    heldout = set(paragraphs["heldout"])
    chosen = [text for text in dict.fromkeys(paragraphs[split]) if split == "heldout" or text not in heldout]
    return [text for text in chosen if text]


def token_stream(lines: list[str], tokenizer: Any, batch_lines: int = 4096) -> np.ndarray:
    """int32 ``[N]``: all lines one after the other as tokens; names of special tokens are letters like others."""
    read = plain_reader(tokenizer)
    parts = []
    for first in range(0, len(lines), batch_lines):
        encoded = read(lines[first : first + batch_lines])
        parts.append(np.fromiter((token for line in encoded for token in line), np.int32))
    return np.concatenate(parts) if parts else np.zeros(0, np.int32)


def shuffled_starts(size: int, width: int, step: int, batch_size: int, seed: int) -> np.ndarray:
    """int64 ``[B]``: where the chunks of batch ``step`` begin, of an endless stream over a text of ``size`` tokens.

    Whole epochs of chunks of ``width`` tokens, each in its own order and shift; a pure function of its arguments.

    Example:
      >>> sorted(shuffled_starts(23, 4, 0, 5, seed=0) % 4) == 5 * [shuffled_starts(23, 4, 0, 5, seed=0)[0] % 4]
      True
    """
    chunks = (size - (width - 1)) // width
    epochs, positions = np.divmod(step * batch_size + np.arange(batch_size), chunks)
    starts = np.empty(batch_size, np.int64)
    for epoch in np.unique(epochs):
        rng = np.random.default_rng([seed, 0, int(epoch)])
        shift = rng.integers(width)
        order = rng.permutation(chunks)
        starts[epochs == epoch] = shift + width * order[positions[epochs == epoch]]
    return starts


def spread_chunks(chunks: int, batch_size: int, max_batches: int | None) -> Iterator[np.ndarray]:
    """Numbers of a text's chunks, in order and a batch at a time; with ``max_batches`` spread evenly over the text.

    Example:
      >>> [rows.tolist() for rows in spread_chunks(10, 2, 2)]
      [[0, 2], [5, 7]]
    """
    wanted = chunks if max_batches is None else min(chunks, max_batches * batch_size)
    chosen = np.arange(wanted) * chunks // wanted
    for first in range(0, wanted, batch_size):
        yield chosen[first : first + batch_size]
