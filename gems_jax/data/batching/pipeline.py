"""Batches of all tasks for training, with exact resume, and of one task for evaluation."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gems_jax.data.batching.batches import gather_inputs, make_batch
from gems_jax.data.batching.encoded_table import EncodedTable
from gems_jax.data.batching.sampling import RowPlan, Sampling
from gems_jax.types import Batch

__all__ = ["Batch", "BatchIterator", "TaskBatchSource", "eval_batches", "gather_inputs", "make_batch", "task_batches"]

# The length of an endless stream of batches: no run gets there.
_ENDLESS = 2**40


class TaskBatchSource:
    """Element ``k`` is batch ``k`` of all tasks; whole batches, so that the pipeline moves few Python objects.

    Each task walks through its own table, newly shuffled every epoch, as fast as `RowPlan` says; what a step has fewer
    than ``batch_size`` rows of is filled up with rows of -1, whose masks are 0. The order depends on the seed, the
    task's name, the tables' sizes and, where rows are grouped by length, their lengths; with ``sampling="equal"`` a
    task's does not depend on the other tasks.

    The arguments are those of `task_batches`.
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
        length_window: int = 1,
        sampling: Sampling = "equal",
        temperature: float = 1.0,
        **token_ids: int,
    ):
        if batch_size < 1 or batch_size % process_count:
            raise ValueError(f"batch_size {batch_size} must be positive and divisible by {process_count} processes")
        if not 0 <= process_index < process_count:
            raise ValueError(f"process_index {process_index} is not below process_count {process_count}")
        if length_window < 1:
            raise ValueError(f"length_window must be at least 1 step, got {length_window}")
        _check_tables(encoded, max_length)
        self._encoded = dict(encoded)
        self._batch_size = batch_size
        self._lengths = sorted({length for length in length_buckets if length < max_length} | {max_length})
        if self._lengths[0] < 1:
            raise ValueError(f"length_buckets must be positive, got {self._lengths[0]}")
        self._seed = seed
        self._length_window = length_window
        self._plan = RowPlan([len(table) for table in encoded.values()], batch_size, sampling, temperature)
        local = batch_size // process_count
        self._slice = slice(process_index * local, (process_index + 1) * local)
        self._token_ids = token_ids
        order: list[Any] = [batch_size, seed, length_window, sampling, temperature, self._lengths]
        order += [[task, len(table), int(table.offsets[-1])] for task, table in encoded.items()]
        self.order = f"{zlib.crc32(repr(order).encode()):08x}"
        self._make_caches()

    def _make_caches(self) -> None:
        # Two epochs of every task are at hand at a time: a batch may reach over the end of one.
        self._permutation = functools.lru_cache(maxsize=2 * len(self._encoded) + 2)(self._make_permutation)
        self._window = functools.lru_cache(maxsize=4)(self._make_window)

    def __getstate__(self) -> dict[str, Any]:
        """For worker processes: without what can be made again."""
        return {name: value for name, value in vars(self).items() if name not in ("_permutation", "_window")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._make_caches()

    def _make_permutation(self, task: str, epoch: int) -> np.ndarray:
        size = len(self._encoded[task])
        rng = np.random.default_rng([self._seed, zlib.crc32(task.encode()), epoch])
        # Half the memory where numbers fit.
        return rng.permutation(size).astype(np.int32 if size < 2**31 else np.int64)

    def _stream(self, task: str, first: int, last: int) -> np.ndarray:
        """int64: the rows at these positions of a task's endless stream of epochs."""
        size = len(self._encoded[task])
        parts = [
            self._permutation(task, epoch)[max(first - epoch * size, 0) : last - epoch * size]
            for epoch in range(first // size, -(-last // size))
        ]
        return np.concatenate([np.zeros(0, np.int64), *parts])

    def _make_window(self, window: int) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
        """Steps of a window in the order of their inputs' lengths, rows of each task in this order, and their ends.

        A step has the shortest rows of all tasks, another the next, and so on; which one is chance.
        """
        width = self._length_window
        rng = np.random.default_rng([self._seed, zlib.crc32(b"length_window"), window])
        steps = rng.permutation(width)
        first, last = (self._plan.before(step * width) for step in (window, window + 1))
        counts = np.stack([self._plan.counts(window * width + int(step)) for step in steps])
        rows = {}
        for number, (task, table) in enumerate(self._encoded.items()):
            stream = self._stream(task, int(first[number]), int(last[number]))
            rows[task] = stream[np.argsort(table.lengths_in_batch(stream), kind="stable")]
        ends = np.concatenate([np.zeros((1, counts.shape[1]), np.int64), np.cumsum(counts, axis=0)])
        return np.argsort(steps), rows, ends

    def rows(self, task: str, step: int) -> np.ndarray:
        """int64 ``[B]``: the table rows of a task's global batch, before it is cut for the processes; -1 fills it."""
        number = list(self._encoded).index(task)
        if self._length_window == 1:
            first = int(self._plan.before(step)[number])
            chosen = self._stream(task, first, first + int(self._plan.counts(step)[number]))
        else:
            window, offset = divmod(step, self._length_window)
            ranks, rows, ends = self._window(window)
            rank = int(ranks[offset])
            chosen = rows[task][ends[rank, number] : ends[rank + 1, number]]
        result = np.full(self._batch_size, -1, np.int64)
        result[: len(chosen)] = chosen
        return result

    def __len__(self) -> int:
        return _ENDLESS

    def __getitem__(self, step: int) -> Batch:
        rows = {task: self.rows(task, int(step)) for task in self._encoded}
        # Over the global batch, so that all processes agree on the length.
        longest = max(int(self._encoded[task].lengths_in_batch(r[r >= 0]).max(initial=0)) for task, r in rows.items())
        length = next(bucket for bucket in self._lengths if bucket >= longest)
        batches = [
            make_batch(table, rows[task][self._slice], length, **self._token_ids)
            for task, table in self._encoded.items()
        ]
        return {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}


def _check_tables(encoded: Mapping[str, EncodedTable], max_length: int) -> None:
    if not encoded:
        raise ValueError("no task to make batches of")
    for task, table in encoded.items():
        if not len(table):
            raise ValueError(f"task {task!r} has no training rows; check the prepared data")
        longest = int(table.lengths_in_batch().max())
        if longest > max_length:
            raise ValueError(
                f"task {task!r}: an input has {longest} tokens, max_length is {max_length}; encode the table with "
                "this max_length"
            )
    for what, values in (
        ("layouts", {table.layout for table in encoded.values()}),
        ("numbers of tokens an item", {table.target_tokens.shape[1] for table in encoded.values()}),
    ):
        if len(values) > 1:
            raise ValueError(f"the tasks' tables have different {what}, {sorted(values)}; encode all for one model")


class BatchIterator(Iterator[Batch]):
    """Batches one after the other, made ahead by threads or processes, always in the same order.

    Its state is the number of the next batch alone, so that it fits any number of workers.

    Args:
      source: of the batches: `TaskBatchSource`, or `gems_jax.data.batching.with_text.TextBesideTasks`.
      prefetch: batches made ahead; 0: each when it is asked for.
      threads: that make them.
      workers: processes that make them, instead of threads of this one; 0: none.
    """

    def __init__(self, source: Any, prefetch: int = 4, threads: int = 1, workers: int = 0) -> None:
        if prefetch < 0 or threads < 1 or workers < 0:
            raise ValueError(
                f"prefetch and workers must be at least 0 and threads 1, got {prefetch}, {workers} and {threads}"
            )
        if workers and not prefetch:
            raise ValueError(f"workers={workers} make batches ahead; prefetch must be at least 1")
        self._source = source
        self._prefetch, self._threads, self._workers = prefetch, threads, workers
        self._step = 0
        self._iterator: Any = None

    def __next__(self) -> Batch:
        if self._iterator is None:
            self._iterator = self._start()
        batch = next(self._iterator)
        self._step += 1
        return batch

    def _start(self) -> Any:
        import grain

        dataset = grain.MapDataset.source(self._source)[self._step :]
        threads = 0 if self._workers or not self._prefetch else self._threads
        batches = dataset.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=self._prefetch))
        if self._workers:
            from absl import flags

            if not flags.FLAGS.is_parsed():  # grain's workers ask for it
                flags.FLAGS.mark_as_parsed()
            ahead = max(1, self._prefetch // self._workers)
            batches = batches.mp_prefetch(grain.MultiprocessingOptions(self._workers, per_worker_buffer_size=ahead))
        return iter(batches)

    def get_state(self) -> dict[str, Any]:
        """Where it is, JSON values only."""
        return {"step": self._step, "order": self._source.order}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on where an iterator over the same data was.

        Raises:
          ValueError: the state is another iterator's, or one over other data, sizes or options.
        """
        step = state.get("step")
        if not isinstance(step, int) or step < 0:
            raise ValueError(f"{dict(state)} is no state of these batches; expected a step and an order")
        if state.get("order") != self._source.order:
            raise ValueError(
                f"the state at step {step} is of batches in another order: other tables, seed, batch size, length "
                "buckets, sampling or general text; go on with the same, or begin anew"
            )
        self.close()
        self._step = step

    def close(self) -> None:
        """Ends threads and processes; the next batch starts them again."""
        if self._iterator is not None and hasattr(self._iterator, "close"):
            self._iterator.close()
        self._iterator = None


def task_batches(
    encoded: Mapping[str, EncodedTable],
    batch_size: int,
    max_length: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    length_buckets: Sequence[int] = (),
    length_window: int = 1,
    sampling: Sampling = "equal",
    temperature: float = 1.0,
    prefetch: int = 4,
    threads: int = 1,
    workers: int = 0,
    beside: Callable[[TaskBatchSource], Any] | None = None,
    **token_ids: int,
) -> BatchIterator:
    """An endless iterator over batches of all tasks, by grain, with `get_state()` and ``set_state(state)``.

    Args:
      encoded: task to its encoded training table; ``T`` tasks, in this order, of one layout.
      batch_size: ``B``, most rows of a task in the global batch; process ``p`` of ``n`` gets rows
        ``[p B / n, (p + 1) B / n)``.
      max_length: ``S``, most columns of ``input_ids``.
      seed: of the order.
      process_index: ``p``.
      process_count: ``n``.
      length_buckets: shorter lengths a batch may have where all its inputs fit; each one costs a
        compilation.
      length_window: steps whose rows are sorted by length and then cut into batches, short with short in all tasks,
        whose order is shuffled: with ``length_buckets`` this saves padding. 1: rows stay as they are shuffled.
      sampling: rows of each task in a step. ``equal``: ``B`` of each, so that small tables are walked through more
        often; ``ratio``: in proportion to the tables' sizes, all epochs ending together; ``temperature``: in
        proportion to ``size ** (1 / temperature)``. The largest task has up to ``B``; the rows of all tasks together
        are equally many in every step, see `RowPlan`; a batch is filled up with rows of ``row_index`` -1 and masks
        0, which count nowhere.
      temperature: from 1 (``ratio``) to large numbers (nearly ``equal``).
      prefetch: batches made ahead.
      threads: that make them.
      workers: processes that make them instead. The batches are the same for any number.
      beside: makes the source with general text in it of that of the tasks, see
        `gems_jax.data.batching.with_text.TextBesideTasks`; ``None``: there is none.
      **token_ids: ``pad_token_id``, ``eos_token_id``, ``decoder_start_token_id`` where they are not T5's 0, 1, 0.

    Returns:
      Iterator of dicts as those of `make_batch`, each array with the task axis before the others: ``[T, B / n, ...]``.
    """
    source = TaskBatchSource(
        encoded, batch_size, max_length, seed, process_index, process_count, length_buckets, length_window, sampling,
        temperature, **token_ids,
    )  # fmt: skip
    return BatchIterator(source if beside is None else beside(source), prefetch, threads, workers)


def eval_batches(
    encoded: EncodedTable, batch_size: int, max_length: int | None = None, **token_ids: int
) -> Iterator[Batch]:
    """All rows once, in order, in batches of one shape; the last one is filled with rows of ``row_index`` -1.

    Args:
      encoded: ``R`` rows.
      batch_size: ``B``.
      max_length: ``S``; by default the longest input, rounded up to a multiple of 8.
      **token_ids: as for `task_batches`.

    Returns:
      Iterator of dicts as those of `make_batch`, without a task axis.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be positive, got {batch_size}")
    if not len(encoded):
        raise ValueError(f"task {encoded.task!r} has no rows to evaluate; check the prepared data")
    length = max_length or -(-int(encoded.lengths_in_batch().max()) // 8) * 8
    return (
        make_batch(encoded, np.where(rows < len(encoded), rows, -1), length, **token_ids)
        for rows in (start + np.arange(batch_size) for start in range(0, len(encoded), batch_size))
    )
