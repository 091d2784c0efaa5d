"""General text: a file, or the Python reference that every Python installation carries."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

PYDOC = "pydoc"
_HELDOUT_SHARE = 0.12


def read_lines(source: str | Path, split: str = "train") -> list[str]:
    """Non-empty lines of a text.

    Args:
        source: `"pydoc"`, or the path of a UTF-8 file (which is one split: name another file for another).
        split: `"train"` or `"heldout"`, for `"pydoc"`: topics are split by their name, and a paragraph of a
            held-out topic never occurs in the training text.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file holds no text, or the split is unknown.
    """
    if split not in ("train", "heldout"):
        raise ValueError(f"split must be 'train' or 'heldout', got {split!r}")
    if str(source) == PYDOC:
        return _pydoc_lines(split)
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"general text {path} does not exist; name a text file, or {PYDOC!r}")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"general text {path} is not UTF-8: {error}") from None
    lines = [line for line in lines if line]
    if not lines:
        raise ValueError(f"general text {path} holds no text")
    return lines


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
    """int32 `[N]`: all lines one after the other as tokens, without special tokens."""
    parts = []
    for first in range(0, len(lines), batch_lines):
        encoded = tokenizer(lines[first : first + batch_lines], add_special_tokens=False)["input_ids"]
        parts.append(np.fromiter((token for line in encoded for token in line), np.int32))
    return np.concatenate(parts) if parts else np.zeros(0, np.int32)


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
