"""A table as tokens, in memory or memory-mapped from files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import TYPE_CHECKING, Any

import numpy as np

from gems_jax.checksums import damage
from gems_jax.data.batching.layouts import LAYOUTS

if TYPE_CHECKING:
    from gems_jax.models.family import Layout

FORMAT_VERSION = 5
META = "encoded.json"
_ARRAYS = {"tokens": (np.int32, 1), "offsets": (np.int64, 1), "target_tokens": (np.int32, 2)}


@dataclass(frozen=True, eq=False)
class EncodedTable:
    """A table as tokens.

    Args:
      task: name of the task.
      tokens: int32, all inputs one after the other; an encoder's end in the end token, a decoder's are prompts.
      offsets: int64 ``[R + 1]``; the input of row ``r`` is ``tokens[offsets[r]:offsets[r + 1]]``.
      target_tokens: int32 ``[R, L]``, the target item's tokens, -1 behind shorter ones; ``[R]`` stands for ``[R, 1]``.
      dropped_items: history items left out, oldest first, because an input would have been too long.
      clipped_queries: rows whose query lost words at its end for the same reason.
      layout: of the models that the inputs are for.
      folder: where the arrays are memory-mapped from, if they are: then other processes map them, too.

    Example:
      >>> table = EncodedTable("rec", np.array([5, 6, 1, 7, 1]), np.array([0, 3, 5]), np.array([8, 9]))
      >>> len(table), table.tokens_of(1).tolist(), table.target_tokens.tolist()
      (2, [7, 1], [[8], [9]])
    """

    task: str
    tokens: np.ndarray
    offsets: np.ndarray
    target_tokens: np.ndarray
    dropped_items: int = 0
    clipped_queries: int = 0
    layout: Layout = "encoder_decoder"
    folder: Path | None = None

    def __post_init__(self) -> None:
        if self.target_tokens.ndim == 1:
            object.__setattr__(self, "target_tokens", self.target_tokens[:, None])
        if self.target_tokens.ndim != 2 or len(self.target_tokens) != len(self.offsets) - 1:
            raise ValueError(
                f"task {self.task!r}: target_tokens has shape {self.target_tokens.shape}, offsets describe "
                f"{len(self.offsets) - 1} rows: expected [R, L]"
            )

    def __len__(self) -> int:
        return len(self.target_tokens)

    def __reduce__(self) -> Any:
        if self.folder is None:
            return super().__reduce__()
        return map_encoded, (self.folder,)

    def lengths(self, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        """int64, tokens of each input, or of those of some rows."""
        return self.offsets[1:][rows] - self.offsets[:-1][rows]

    def answer_lengths(self, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        """int64, tokens of the answers: the item's and the end token."""
        return (self.target_tokens[rows] >= 0).sum(axis=1) + 1

    def lengths_in_batch(self, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        """int64, columns of ``input_ids`` that rows need."""
        lengths = self.lengths(rows)
        return lengths + self.answer_lengths(rows) if LAYOUTS[self.layout].answer_follows else lengths

    def tokens_of(self, row: int) -> np.ndarray:
        """The tokens of one input."""
        return self.tokens[self.offsets[row] : self.offsets[row + 1]]


def open_encoded(folder: str | Path) -> EncodedTable:
    """The table that `encode_once` wrote to a folder, memory-mapped, once its files have been read and found whole.

    Reading them costs about a second a gigabyte, once; processes that get an opened table from this one map it only.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is damaged.
    """
    if (Path(folder) / META).is_file():
        # Before anything is made of them: a damaged header ends numpy with errors of many kinds.
        wrong = damage(Path(folder), [META, *(f"{name}.npy" for name in _ARRAYS)])
        if wrong is not None:
            raise ValueError(f"the encoded table {folder} is damaged ({wrong}); remove it, it is made anew")
    return map_encoded(folder)


def map_encoded(folder: str | Path) -> EncodedTable:
    """As `open_encoded`, of files that have been found whole already: only their form is checked."""
    folder = Path(folder)
    if not (folder / META).is_file():
        raise FileNotFoundError(f"{folder} holds no encoded table ({META} is missing); encode_once writes one")
    try:
        meta: dict[str, Any] = json.loads((folder / META).read_text(encoding="utf-8"))
        if meta.pop("format_version") != FORMAT_VERSION:
            raise ValueError(f"{META} is not of format version {FORMAT_VERSION}")
        layout = meta.pop("family")
        arrays = {name: _mapped(folder / f"{name}.npy", *kind) for name, kind in _ARRAYS.items()}
        rows, end = len(arrays["offsets"]) - 1, arrays["offsets"][-1]
        if rows != len(arrays["target_tokens"]) or end != len(arrays["tokens"]):
            raise ValueError("its parts do not fit together")
        return EncodedTable(**meta, layout=layout, folder=folder, **arrays)  # type: ignore[arg-type]
    except (ValueError, TypeError, KeyError, OSError, EOFError, IndexError, SyntaxError, TokenError) as error:
        raise ValueError(f"the encoded table {folder} is damaged ({error}); remove it, it is made anew") from None


def _mapped(path: Path, dtype: type, ndim: int) -> np.ndarray:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.dtype != dtype or array.ndim != ndim:
        raise ValueError(f"{path.name} has dtype {array.dtype} and {array.ndim} axes")
    # A plain array on the same memory: a memmap's own indexing is several times slower.
    return array.view(np.ndarray)
