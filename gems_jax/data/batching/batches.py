"""Batches of chosen rows of an encoded table, gathered without a loop over rows."""

from __future__ import annotations

import numpy as np

from gems_jax.data.batching.encoded_table import EncodedTable
from gems_jax.data.batching.layouts import LAYOUTS
from gems_jax.types import Batch


def gather_inputs(
    encoded: EncodedTable, rows: np.ndarray, length: int, pad_token_id: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """``input_ids`` and ``attention_mask``, int32 ``[B, length]``, of the given rows; row -1 is all padding."""
    present = rows >= 0
    known = np.where(present, rows, 0)
    starts = encoded.offsets[known]
    lengths = np.where(present, encoded.offsets[known + 1] - starts, 0)
    if lengths.max(initial=0) > length:
        raise ValueError(
            f"task {encoded.task!r}: an input has {lengths.max()} tokens, more than the batch's {length}; "
            "encode the table with this max_length"
        )
    columns = np.arange(length)
    mask = columns < lengths[:, None]
    input_ids = np.full((len(rows), length), pad_token_id, np.int32)
    # A mask assigns row by row, so the tokens of all rows one after the other fill it.
    positions = np.repeat(starts - (np.cumsum(lengths) - lengths), lengths) + np.arange(int(lengths.sum()))
    input_ids[mask] = encoded.tokens[positions]
    return input_ids, mask.astype(np.int32)


def make_batch(
    encoded: EncodedTable,
    rows: np.ndarray,
    length: int,
    pad_token_id: int = 0,
    eos_token_id: int = 1,
    decoder_start_token_id: int = 0,
) -> Batch:
    """The batch of the given rows for models of the table's layout; a row of -1 is padding, all its masks are 0.

    The answer to an input is the item's ``L`` tokens, or fewer, then the end token.

    Args:
      encoded: the table.
      rows: int64 ``[B]``.
      length: ``S``, columns of ``input_ids``.
      pad_token_id: what fills rows up, on the right.
      eos_token_id: the end token.
      decoder_start_token_id: what a T5 decoder begins with.

    Returns:
      ``input_ids``, ``attention_mask`` int32 ``[B, S]``, ``row_index`` int32 ``[B]`` and the answers. Layout
      ``encoder_decoder``: ``decoder_input_ids`` (the start token, then the answer but for its last token), ``labels``
      (the answer) and ``label_mask`` int32 ``[B, L + 1]``. Layout ``decoder``: the answer follows the prompt in
      ``input_ids``; ``labels`` int32 ``[B, S]`` are the tokens that follow, ``labels[:, s] = input_ids[:, s + 1]``, and
      ``label_mask`` int32 ``[B, S]`` is 1 where that is a token of the answer. So in both layouts the loss compares the
      logits of a position with the label of that very position.
    """
    rows = np.asarray(rows)
    prompts, mask = gather_inputs(encoded, rows, length, pad_token_id)
    answers, valid = _answers(encoded, rows, pad_token_id, eos_token_id)
    needed = int(encoded.lengths_in_batch(rows[rows >= 0]).max(initial=0))
    if needed > length:
        raise ValueError(
            f"task {encoded.task!r}: a prompt and its answer have {needed} tokens, more than the batch's {length}; "
            "encode the table with this max_length"
        )
    batch = LAYOUTS[encoded.layout].join(prompts, mask, answers, valid, pad_token_id, decoder_start_token_id)
    return batch | {"row_index": rows.astype(np.int32)}


def _answers(encoded: EncodedTable, rows: np.ndarray, pad: int, end: int) -> tuple[np.ndarray, np.ndarray]:
    """The answers, int32 ``[B, L + 1]``, and bool, which of it are there."""
    present = rows >= 0
    item = encoded.target_tokens[np.where(present, rows, 0)]
    widths = (item >= 0).sum(axis=1)
    answers = np.concatenate([item, np.full((len(rows), 1), -1, np.int32)], axis=1)
    answers[np.arange(len(rows)), widths] = end
    valid = (answers >= 0) & present[:, None]
    answers[~valid] = pad
    return answers, valid
