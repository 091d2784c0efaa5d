"""A table as tokens, in memory or memory-mapped from files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

Family = Literal["encoder_decoder", "decoder"]
FAMILIES: tuple[Family, ...] = get_args(Family)


@dataclass(frozen=True, eq=False)
class EncodedTable:
    """A table as tokens.

    Example:
        >>> table = EncodedTable("rec", np.array([5, 6, 1, 7, 1]), np.array([0, 3, 5]), np.array([8, 9]))
        >>> len(table), table.tokens_of(1).tolist(), table.target_tokens.tolist()
        (2, [7, 1], [[8], [9]])

    Args:
        task: name of the task.
        tokens: int32, all inputs one after the other; an encoder's end in the end token, a decoder's are prompts.
        offsets: int64 `[R + 1]`; the input of row `r` is `tokens[offsets[r]:offsets[r + 1]]`.
        target_tokens: int32 `[R, L]`, the target item's tokens, -1 behind shorter ones; `[R]` stands for `[R, 1]`.
        dropped_items: history items left out, oldest first, because an input would have been too long.
        clipped_queries: rows whose query lost words at its end for the same reason.
        family: of the models that the inputs are for.
        folder: where the arrays are memory-mapped from, if they are: then other processes map them, too.
    """

    task: str
    tokens: np.ndarray
    offsets: np.ndarray
    target_tokens: np.ndarray
    dropped_items: int = 0
    clipped_queries: int = 0
    family: Family = "encoder_decoder"
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
        from gems_jax.data.batching.token_cache import map_encoded

        return map_encoded, (self.folder,)

    def lengths(self, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        """int64, tokens of each input, or of those of some rows."""
        return self.offsets[1:][rows] - self.offsets[:-1][rows]

    def answer_lengths(self, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        """int64, tokens of the answers: the item's and the end token."""
        return (self.target_tokens[rows] >= 0).sum(axis=1) + 1

    def lengths_in_batch(self, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        """int64, columns of `input_ids` that rows need: in decoders the answer follows the prompt."""
        lengths = self.lengths(rows)
        return lengths + self.answer_lengths(rows) if self.family == "decoder" else lengths

    def tokens_of(self, row: int) -> np.ndarray:
        """The tokens of one input."""
        return self.tokens[self.offsets[row] : self.offsets[row + 1]]
