"""The columns of a batch of rows by their roles: as text, ids, times, tasks and splits, and why rows cannot be used."""

from __future__ import annotations

from typing import Any

import numpy as np

from gems_jax.data.dataset.tables import SPLITS
from gems_jax.data.raw import reasons
from gems_jax.data.raw.blank import without_words
from gems_jax.data.raw.columns import as_written, not_utf8
from gems_jax.data.raw.examples import UNKNOWN, Names, Vocabulary
from gems_jax.data.raw.id_lists import Division, IdLists, read_lists
from gems_jax.data.raw.ids import KnownIds
from gems_jax.data.raw.options import TableFiles
from gems_jax.data.raw.quarantine import Quarantine
from gems_jax.data.raw.ragged import Ragged
from gems_jax.data.raw.raw_rows import RawRows
from gems_jax.data.raw.times import read_times

_SPLIT_NAMES = {name: name for name in SPLITS} | {"validation": "valid", "val": "valid", "dev": "valid", "eval": "test"}


class RowColumns:
    """Reads the columns of a batch and keeps the first reason why a row cannot be used.

    Args:
      batch: of raw rows.
      files: words for nothing, separators, the form of times, names of tasks.
      quarantine: gets bad rows, and counts of cells that were read in another way than they are written.
    """

    def __init__(self, batch: RawRows, files: TableFiles, quarantine: Quarantine):
        self._batch, self._files, self._quarantine = batch, files, quarantine
        self._missing = tuple(files.missing)
        self._code = np.zeros(len(batch.numbers), np.int16)
        self._reasons = [""]

    def __contains__(self, role: str) -> bool:
        return role in self._batch.columns

    def __len__(self) -> int:
        return len(self._batch.numbers)

    def reject(self, rows: np.ndarray, reason: str) -> None:
        """Marks rows bad, unless they are already."""
        self._reasons.append(reason)
        self._code[rows & (self._code == 0)] = len(self._reasons) - 1

    def usable(self) -> np.ndarray:
        """bool ``[R]``; the other rows go to the quarantine."""
        for row in np.flatnonzero(self._code).tolist():
            self._quarantine.add("row", self._where(row), self._reasons[self._code[row]], self._batch.raw(row))
        return self._code == 0

    def texts(self, role: str, bad_reason: str) -> Any:
        """A pyarrow string array, null where a cell is missing; all null without the column."""
        import pyarrow as pa

        if role not in self:
            return pa.nulls(len(self), pa.string())
        written, bad = as_written(self._batch.columns[role])
        texts, counts = without_words(written, self._missing)
        for word, count in counts.items():
            where = written.index(pa.scalar(word, written.type)).as_py()
            text = f"{{n}} cells of {role} say {word!r} and count as missing (files.missing)"
            self._quarantine.remark(text, count, self._where(where))
        self._reject_cells(role, bad, bad_reason)
        return texts

    def ids(self, role: str, names: Vocabulary, known: KnownIds | None) -> Ragged:
        """Lists of item numbers."""
        lists = self._lists(role, known)
        self._reject_cells(role, lists.bad, reasons.unreadable(role))
        # Items of unreadable cells must not enter the vocabulary.
        indices = lists.indices.keep(~lists.bad[lists.indices.row_of])
        self._remark_cells(lists.divided, role, "were divided at spaces, commas, semicolons or bars")
        self._remark_cells(lists.whole, role, "hold spaces, commas, semicolons or bars and were taken for one id each")
        return Ragged(names.encode(lists.texts.take(indices.values)), indices.offsets)

    def times(self) -> np.ndarray:
        """Seconds, float64 ``[R]``, nan without the column."""
        if "timestamp" not in self:
            return np.full(len(self), np.nan)
        times = read_times(self._batch.columns["timestamp"], self._files.time_format, self._missing)
        rows = np.flatnonzero(times.zoneless)
        if len(rows):
            text = "{n} timestamps say no zone, beside others that do, and were read as UTC"
            example = f"{self._where(int(rows[0]))}, {self._batch.raw(int(rows[0]))['timestamp']!r}"
            self._quarantine.remark(text, len(rows), example)
        self.reject(times.unclear, reasons.DAY_OR_MONTH)
        self.reject(times.bad, reasons.ODD_TIME)
        self.reject(np.isnan(times.seconds), reasons.NO_TIME)
        return times.seconds

    def tasks(self, query: np.ndarray, names: Names) -> np.ndarray:
        """Tasks by their column; without one a row with a query is a search."""
        if "task" not in self:
            if "query" in self and (blank := query == UNKNOWN).any():
                text = (
                    "{n} rows have no query and, without a column of tasks, are 'rec', not 'src': where searches "
                    "without words are among them, a column of tasks says so (files.columns: {task: ...})"
                )
                self._quarantine.remark(text, int(blank.sum()), self._where(int(blank.argmax())))
            return np.where(query == UNKNOWN, names.tasks.get("rec"), names.tasks.get("src")).astype(np.int32)
        texts = self.texts("task", "the task is missing")
        self.reject(np.asarray(texts.is_null()), "the task is missing")
        return self._task_numbers(texts, names)

    def remark_queries(self, task: np.ndarray, left_out: np.ndarray, names: Names) -> None:
        """Counts queries of rows whose task has none."""
        for number in np.unique(task[left_out]).tolist():
            first = int(np.flatnonzero(left_out & (task == number))[0])
            text = (
                f"{{n}} rows of the task {names.tasks.names[number]!r} have a query that is not read, because "
                f"files.query_tasks is {list(self._files.query_tasks)}"
            )
            self._quarantine.remark(text, int((left_out & (task == number)).sum()), self._where(first))

    def history_tasks(self, history: Ragged, names: Names) -> Ragged:
        """The task of each of the histories' items."""
        lists = self._lists("history_task", None)
        wrong = lists.bad | (lists.indices.lengths != history.lengths)
        self.reject(wrong, "the history's tasks are not one for each of its items")
        numbers = self._task_numbers(lists.texts, names)
        result = np.full(len(history.values), UNKNOWN, np.int32)
        result[~wrong[history.row_of]] = numbers[lists.indices.values[~wrong[lists.indices.row_of]]]
        return Ragged(result, history.offsets)

    def splits(self, split: str | None) -> np.ndarray:
        """Indices into the splits; -1 where rows are not split yet."""
        if split is not None:
            return np.full(len(self), SPLITS.index(split), np.int8)
        if "split" not in self:
            return np.full(len(self), -1, np.int8)
        texts = self.texts("split", "the split is none of train, valid and test").to_pylist()
        names = [_SPLIT_NAMES.get((text or "").lower()) for text in texts]
        self.reject(np.asarray([name is None for name in names]), "the split is none of train, valid and test")
        return np.asarray([SPLITS.index(name) if name else -1 for name in names], np.int8)

    def _lists(self, role: str, known: KnownIds | None) -> IdLists:
        division = Division(self._files.separators.get(role), known, single=role == "target")
        # The catalogue has the last word on what is nothing.
        missing = tuple(word for word in self._missing if known is None or word not in known.ids)
        return read_lists(self._batch.columns[role], division, missing)

    def _reject_cells(self, role: str, bad: np.ndarray, reason: str) -> None:
        if bad.any():
            self.reject(bad & not_utf8(self._batch.columns[role]), reasons.NOT_UTF8)
            self.reject(bad, reason)

    def _task_numbers(self, texts: Any, names: Names) -> np.ndarray:
        distinct = texts.dictionary_encode()
        local = [names.tasks.add(self._files.tasks.get(name, name)) for name in distinct.dictionary.to_pylist()]
        index = distinct.indices.fill_null(len(local)).to_numpy(zero_copy_only=False)
        return np.asarray([*local, UNKNOWN], np.int32)[index]

    def _remark_cells(self, cells: np.ndarray, role: str, what: str) -> None:
        rows = np.flatnonzero(cells)
        if len(rows):
            cell = self._batch.raw(int(rows[0]))[role]
            text = f"{{n}} cells of {role} {what} (files.separators)"
            self._quarantine.remark(text, len(rows), f"{self._where(int(rows[0]))}, {str(cell)[:60]!r}")

    def _where(self, row: int) -> str:
        return f"{self._batch.path.name}: row {self._batch.numbers[row]}"
