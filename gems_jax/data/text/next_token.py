"""General text as batches in which each token is the label of the one before it."""

from collections.abc import Iterator

import numpy as np

from gems_jax.data.text.general_text import shuffled_starts, spread_chunks
from gems_jax.types import Batch


def next_token_batches(
    tokens: np.ndarray,
    batch_size: int,
    input_length: int,
    max_batches: int | None = None,
    bos_token_id: int | None = None,
) -> Iterator[Batch]:
    """The chunks of a text once, in order, each token the label of the one before it.

    Args:
      tokens: int ``[N]``, the text.
      batch_size: ``B``; the last batch is filled up with rows whose masks are 0.
      input_length: ``S``, the token that begins a text included.
      max_batches: then the chunks are spread evenly over the text.
      bos_token_id: what each chunk begins with, where the model was trained so.

    Yields:
      ``input_ids``, ``attention_mask``, ``labels``, ``label_mask`` int32 ``[B, S]``; the last position of a chunk has
      no label.

    Raises:
      ValueError: the text is shorter than a chunk, or chunks are too short.

    Example:
      >>> batch = next(next_token_batches(np.arange(5, 11), 2, 3))
      >>> batch["input_ids"].tolist(), batch["labels"].tolist()
      ([[5, 6, 7], [8, 9, 10]], [[6, 7, 0], [9, 10, 0]])
    """
    width = _width(input_length, bos_token_id)
    chunks = len(tokens) // width
    if chunks < 1:
        raise ValueError(f"{len(tokens)} tokens of text are too few for inputs of {input_length}")
    for rows in spread_chunks(chunks, batch_size, max_batches):
        yield _batch(np.asarray(tokens)[width * rows[:, None] + np.arange(width)], batch_size, bos_token_id)


def next_token_batch(
    tokens: np.ndarray, step: int, batch_size: int, input_length: int, seed: int, bos_token_id: int | None = None
) -> Batch:
    """Batch ``step`` of an endless stream over a text: whole epochs of chunks, each in its own order and shift.

    A pure function of its arguments. All rows are full. Arguments and batch are otherwise those of
    `next_token_batches`.

    Args:
      step: number of the batch.
      seed: of order and shifts.

    Example:
      >>> batch = next_token_batch(np.arange(5, 30), 3, 2, 4, seed=0)
      >>> bool(np.all(batch["labels"][:, :-1] == batch["input_ids"][:, :-1] + 1)), int(batch["label_mask"].sum())
      (True, 6)
    """
    width = _width(input_length, bos_token_id)
    if len(tokens) < 2 * width - 1:  # a chunk, wherever an epoch's shift lets it begin
        raise ValueError(f"{len(tokens)} tokens of text are too few for inputs of {input_length}")
    starts = shuffled_starts(len(tokens), width, step, batch_size, seed)
    return _batch(np.asarray(tokens)[starts[:, None] + np.arange(width)], batch_size, bos_token_id)


def _width(input_length: int, bos_token_id: int | None) -> int:
    """Tokens of text in an input."""
    width = input_length - (bos_token_id is not None)
    if width < 2:
        raise ValueError(f"text.input_length {input_length} is too short for the next token of anything; use 8 or more")
    return width


def _batch(chunks: np.ndarray, batch_size: int, bos_token_id: int | None) -> Batch:
    """The batch of chunks int ``[n, width]``, filled up with rows whose masks are 0."""
    beginning = [] if bos_token_id is None else [bos_token_id]
    ids = np.zeros((batch_size, len(beginning) + chunks.shape[1]), np.int32)
    ids[: len(chunks), : len(beginning)] = beginning
    ids[: len(chunks), len(beginning) :] = chunks
    mask = np.zeros_like(ids)
    mask[: len(chunks)] = 1
    labels, label_mask = np.zeros_like(ids), np.zeros_like(ids)
    labels[:, :-1], label_mask[:, :-1] = ids[:, 1:], mask[:, 1:]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "label_mask": label_mask}
