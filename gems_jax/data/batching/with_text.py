"""Batches of all tasks, and rows of general text beside them."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np

from gems_jax.data.batching.pipeline import TaskBatchSource
from gems_jax.types import Batch

Array = TypeVar("Array")
# Before the names of the text's arrays.
PREFIX = "text_"


class TextBesideTasks:
    """Element ``k`` is batch ``k`` of all tasks with batch ``k`` of general text, whose arrays are ``[1, R, ...]``.

    Args:
      tasks: source of the tasks' batches.
      stream: of `gems_jax.data.batching.layouts.RowLayout.text_stream`, ``R`` rows over all processes.
      digest: of the text and of what its order depends on.
      index: of the process, of the ``parts`` that share the rows.
      parts: number of these.
    """

    def __init__(
        self, tasks: TaskBatchSource, stream: Callable[[int], Batch], digest: str, index: int = 0, parts: int = 1
    ) -> None:
        self._tasks, self._stream, self._index, self._parts = tasks, stream, index, parts
        self.order = f"{zlib.crc32(f'{tasks.order} {digest}'.encode()):08x}"

    def __len__(self) -> int:
        return len(self._tasks)

    def __getitem__(self, step: int) -> Batch:
        text = self._stream(int(step))
        parts = {name: np.array_split(array, self._parts)[self._index] for name, array in text.items()}
        return self._tasks[step] | {PREFIX + name: array[None] for name, array in parts.items()}


def split_text(batch: Mapping[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
    """The arrays of the tasks, and those of the text by their own names; without a text the second is empty.

    Example:
      >>> split_text({"labels": 1, "text_labels": 2})
      ({'labels': 1}, {'labels': 2})
    """
    tasks = {name: array for name, array in batch.items() if not name.startswith(PREFIX)}
    return tasks, {name.removeprefix(PREFIX): array for name, array in batch.items() if name not in tasks}
