"""Batches of all tasks for training, with exact resume, and of one task for evaluation."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gems_jax.data.prompts import EncodedTable

Batch = dict[str, np.ndarray]
# What the end of an endless stream of batches is called: no run gets there.
_ENDLESS = 2**40


def gather_inputs(
    encoded: EncodedTable, rows: np.ndarray, length: int, pad_token_id: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """`input_ids` and `attention_mask`, int32 `[B, length]`, of the given rows; row -1 is all padding."""
    present = rows >= 0
    starts = encoded.offsets[np.where(present, rows, 0)]
    lengths = np.where(present, encoded.offsets[np.where(present, rows, 0) + 1] - starts, 0)
    if lengths.max(initial=0) > length:
        raise ValueError(
            f"task {encoded.task!r}: an input has {lengths.max()} tokens, more than the batch's {length}; "
            "encode the table with this max_length"
        )
    columns = np.arange(length)
    mask = columns < lengths[:, None]
    index = np.minimum(starts[:, None] + columns, len(encoded.tokens) - 1)
    input_ids = np.where(mask, encoded.tokens[index], pad_token_id)
    return input_ids.astype(np.int32), mask.astype(np.int32)


def make_batch(
    encoded: EncodedTable,
    rows: np.ndarray,
    length: int,
    pad_token_id: int = 0,
    eos_token_id: int = 1,
    decoder_start_token_id: int = 0,
) -> Batch:
    """The encoder-decoder batch of the given rows; the label of a row is its item token, then the end token.

    Returns:
        `input_ids`, `attention_mask` int32 `[B, S]`; `decoder_input_ids`, `labels`, `label_mask` int32 `[B,
        2]`; `row_index` int32 `[B]`. A row of -1 is padding: all its masks are 0.
    """
    input_ids, attention_mask = gather_inputs(encoded, rows, length, pad_token_id)
    present = rows >= 0
    target = np.where(present, encoded.target_tokens[np.where(present, rows, 0)], pad_token_id)
    start = np.full_like(target, decoder_start_token_id)
    end = np.where(present, eos_token_id, pad_token_id)
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "decoder_input_ids": np.stack([start, target], axis=1).astype(np.int32),
        "labels": np.stack([target, end], axis=1).astype(np.int32),
        "label_mask": np.repeat(present[:, None], 2, axis=1).astype(np.int32),
        "row_index": rows.astype(np.int32),
    }


class TaskBatchSource:
    """Element `k` is batch `k` of all tasks; whole batches, so that the pipeline moves few Python objects.

    Each task walks through its own table, newly shuffled every epoch, whatever the other tasks' sizes are.
    The order depends on the seed, the task's name and the table's size only.
    """

    def __init__(
        self,
        encoded: Mapping[str, EncodedTable],
        batch_size: int,
        max_length: int,
        seed: int,
        process_index: int = 0,
        process_count: int = 1,
        length_buckets: Sequence[int] = (),
        **token_ids: int,
    ):
        if batch_size < 1 or batch_size % process_count:
            raise ValueError(f"batch_size {batch_size} must be positive and divisible by {process_count} processes")
        if not 0 <= process_index < process_count:
            raise ValueError(f"process_index {process_index} is not below process_count {process_count}")
        if not encoded:
            raise ValueError("no task to make batches of")
        for task, table in encoded.items():
            if not len(table):
                raise ValueError(f"task {task!r} has no training rows; check the prepared data")
            if table.lengths().max() > max_length:
                raise ValueError(
                    f"task {task!r}: an input has {table.lengths().max()} tokens, max_length is "
                    f"{max_length}; "
                    "encode the table with this max_length"
                )
        self._encoded = dict(encoded)
        self._batch_size = batch_size
        self._lengths = sorted({length for length in length_buckets if length < max_length} | {max_length})
        self._seed = seed
        local = batch_size // process_count
        self._slice = slice(process_index * local, (process_index + 1) * local)
        self._token_ids = token_ids
        # Two epochs of every task are at hand at a time: a batch may reach over the end of one.
        self._permutation = functools.lru_cache(maxsize=2 * len(encoded) + 2)(self._make_permutation)

    def _make_permutation(self, task: str, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([self._seed, zlib.crc32(task.encode()), epoch])
        return rng.permutation(len(self._encoded[task]))

    def rows(self, task: str, step: int) -> np.ndarray:
        """int64 `[B]`: the table rows of a task's global batch, before it is cut for the processes."""
        size = len(self._encoded[task])
        epochs, places = np.divmod(step * self._batch_size + np.arange(self._batch_size), size)
        rows = np.empty(self._batch_size, np.int64)
        for epoch in np.unique(epochs):
            rows[epochs == epoch] = self._permutation(task, int(epoch))[places[epochs == epoch]]
        return rows

    def __len__(self) -> int:
        return _ENDLESS

    def __getitem__(self, step: int) -> Batch:
        rows = {task: self.rows(task, int(step)) for task in self._encoded}
        # Over the global batch, so that all processes agree on the length.
        longest = max(int(self._encoded[task].lengths()[rows[task]].max()) for task in rows)
        length = next(bucket for bucket in self._lengths if bucket >= longest)
        batches = [
            make_batch(table, rows[task][self._slice], length, **self._token_ids)
            for task, table in self._encoded.items()
        ]
        return {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}


def task_batches(
    encoded: Mapping[str, EncodedTable],
    batch_size: int,
    max_length: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    length_buckets: Sequence[int] = (),
    prefetch: int = 4,
    **token_ids: int,
) -> Any:
    """An endless grain iterator over batches of all tasks, with `get_state()` and `set_state(state)`.

    Args:
        encoded: task to its encoded training table; `T` tasks, in this order.
        batch_size: rows of a task in the global batch; process `p` of `n` gets rows `[p B / n, (p + 1) B /
            n)`.
        max_length: `S`, tokens of an input.
        seed: of the order.
        process_index: `p`.
        process_count: `n`.
        length_buckets: shorter lengths a batch may have where all its inputs fit; each one costs a
            compilation.
        prefetch: batches made ahead by a thread.
        **token_ids: `pad_token_id`, `eos_token_id`, `decoder_start_token_id` where they are not T5's 0, 1, 0.

    Returns:
        Iterator of dicts: `input_ids`, `attention_mask` int32 `[T, B / n, S]`; `decoder_input_ids` (start,
        item), `labels` (item, end), `label_mask` int32 `[T, B / n, 2]`; `row_index` int32 `[T, B / n]`.
    """
    import grain

    source = TaskBatchSource(
        encoded, batch_size, max_length, seed, process_index, process_count, length_buckets, **token_ids
    )
    options = grain.ReadOptions(num_threads=1 if prefetch else 0, prefetch_buffer_size=prefetch)
    return iter(grain.MapDataset.source(source).to_iter_dataset(options))


def eval_batches(
    encoded: EncodedTable, batch_size: int, max_length: int | None = None, **token_ids: int
) -> Iterator[Batch]:
    """All rows once, in order, in batches of one shape; the last one is filled with rows of `row_index` -1.

    Args:
        encoded: `R` rows.
        batch_size: `B`.
        max_length: `S`; by default the longest input, rounded up to a multiple of 8.
        **token_ids: as for `task_batches`.

    Returns:
        Iterator of dicts as those of `make_batch`, without a task axis.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be positive, got {batch_size}")
    if not len(encoded):
        raise ValueError(f"task {encoded.task!r} has no rows to evaluate; check the prepared data")
    length = max_length or -(-int(encoded.lengths().max()) // 8) * 8
    return (
        make_batch(encoded, np.where(rows < len(encoded), rows, -1), length, **token_ids)
        for rows in (start + np.arange(batch_size) for start in range(0, len(encoded), batch_size))
    )
