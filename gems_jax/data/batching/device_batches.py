"""Batches on their way to the devices while the step before is computed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from gems_jax.data.batching.pipeline import Batch, BatchIterator


class DeviceBatches(Iterator[Mapping[str, Any]]):
    """Puts batches onto devices ahead of time; its state is that of the last batch it gave out.

    Transfers run beside computation: while a step works on one batch the next is there already.

    Args:
      batches: of this process, arrays ``[T, B / n, ...]``.
      sharding: of every array, a ``jax.sharding.Sharding`` of the global ``[T, B, ...]`` (on a mesh with a ``data``
        axis ``NamedSharding(mesh, PartitionSpec(None, "data"))``), or a device.
      ahead: batches on the devices beside the one in use; 0: none.
      drop: arrays that stay here.
      parts: that rows are cut into, as many in each process: arrays on the devices are ``[T, parts, B / parts, ...]``,
        and ``sharding`` is theirs. 1: they are ``[T, B, ...]``.

    Raises:
      ValueError: ``ahead`` is negative, or there is no array that is to be dropped.
    """

    def __init__(
        self,
        batches: BatchIterator,
        sharding: Any,
        ahead: int = 1,
        drop: tuple[str, ...] = ("row_index",),
        parts: int = 1,
    ) -> None:
        if ahead < 0:
            raise ValueError(f"ahead must be at least 0, got {ahead}")
        self._batches = batches
        self._put = _putter(sharding)
        self._ahead = ahead
        self._drop = drop
        self._parts = parts
        self._queue: deque[tuple[Mapping[str, Any], Batch, dict[str, Any]]] = deque()
        self._state = batches.get_state()
        self._host: Batch | None = None

    def __next__(self) -> Mapping[str, Any]:
        while len(self._queue) <= self._ahead:
            self._queue.append(self._load())
        placed, self._host, self._state = self._queue.popleft()
        return placed

    def _load(self) -> tuple[Mapping[str, Any], Batch, dict[str, Any]]:
        batch = next(self._batches)
        missing = [name for name in self._drop if name not in batch]
        if missing:
            raise ValueError(f"there is no array {missing[0]!r} to drop; a batch has {', '.join(batch)}")
        placed = {name: self._put(self._cut(array)) for name, array in batch.items() if name not in self._drop}
        return placed, batch, self._batches.get_state()

    def _cut(self, array: np.ndarray) -> np.ndarray:
        if self._parts == 1:
            return array
        return array.reshape(len(array), self._parts, -1, *array.shape[2:])

    @property
    def host_batch(self) -> Batch:
        """The last batch as it was before it was put onto devices."""
        if self._host is None:
            raise ValueError("no batch was asked for yet")
        return self._host

    def get_state(self) -> dict[str, Any]:
        """Where it is, JSON values only: behind the last batch it gave out, whatever is on the way."""
        return dict(self._state)

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on where an iterator over the same data was; see `BatchIterator.set_state`."""
        self._batches.set_state(state)
        self._queue.clear()
        self._state = self._batches.get_state()

    def close(self) -> None:
        """Ends what makes batches; the next batch starts it again where this one is."""
        self.set_state(self._state)


def _putter(sharding: Any) -> Callable[[np.ndarray], Any]:
    import jax

    if isinstance(sharding, jax.sharding.Sharding):
        return lambda array: jax.make_array_from_process_local_data(sharding, array)
    return lambda array: jax.device_put(array, sharding)
