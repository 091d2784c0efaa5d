"""General text as batches in which each token is the label of the one before it."""

from collections.abc import Iterator

import numpy as np

from gems_jax.data.text.general_text import spread_chunks
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
    beginning = [] if bos_token_id is None else [bos_token_id]
    width = input_length - len(beginning)
    if width < 2:
        raise ValueError(f"text.input_length {input_length} is too short for the next token of anything; use 8 or more")
    chunks = len(tokens) // width
    if chunks < 1:
        raise ValueError(f"{len(tokens)} tokens of text are too few for inputs of {input_length}")
    for rows in spread_chunks(chunks, batch_size, max_batches):
        ids = np.zeros((batch_size, input_length), np.int32)
        ids[: len(rows), : len(beginning)] = beginning
        ids[: len(rows), len(beginning) :] = np.asarray(tokens)[width * rows[:, None] + np.arange(width)]
        mask = np.zeros_like(ids)
        mask[: len(rows)] = 1
        labels, label_mask = np.zeros_like(ids), np.zeros_like(ids)
        labels[:, :-1], label_mask[:, :-1] = ids[:, 1:], mask[:, 1:]
        yield {"input_ids": ids, "attention_mask": mask, "labels": labels, "label_mask": label_mask}
