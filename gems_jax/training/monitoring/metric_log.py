"""Metrics of the steps: read one step late, so that the device always has work; logged, counted, shown."""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from gems_jax.config.train import TrainConfig
from gems_jax.training.callbacks import Callback
from gems_jax.training.monitoring.progress import Progress
from gems_jax.training.monitoring.writers import Writer
from gems_jax.training.workdir.files import Log


class StepInFlight(NamedTuple):
    """A step that the devices still work on.

    Attributes:
      step: its number, from 1.
      metrics: of its parts.
      rows: of its parts, row numbers.
      work: of its parts, tokens and model operations of all processes.
      logged: whether it gets a line.
    """

    step: int
    metrics: list[Mapping[str, jax.Array]]
    rows: list[np.ndarray]
    work: list[tuple[float, float]]
    logged: bool


class MetricLogger:
    """Reads the metrics of a step after the next one has been sent to the device.

    Args:
      config: of the run.
      tasks: names, in the order of the task axis.
      log: ``metrics.jsonl``.
      writers: send the same numbers elsewhere.
      progress: what a person sees.
      peak: operations a second of all devices together, if known.
      refused: of `state`, when a run goes on.
      callbacks: told of every update.
    """

    def __init__(
        self,
        config: TrainConfig,
        tasks: Sequence[str],
        log: Log,
        writers: Sequence[Writer],
        progress: Progress,
        peak: float | None = None,
        refused: Mapping[str, Any] | None = None,
        callbacks: Sequence[Callback] = (),
    ):
        self._config, self._tasks = config, tuple(tasks)
        self._log, self._writers, self._progress, self._peak = log, writers, progress, peak
        self._callbacks = tuple(callbacks)
        refused = refused or {}
        self._refused = {task: int(refused.get("tasks", {}).get(task, 0)) for task in tasks}
        self._in_a_row = int(refused.get("in_a_row", 0))
        self._pending: StepInFlight | None = None
        self.stop_code = 0
        self.restart_clock()

    def state(self) -> dict[str, Any]:
        """For the checkpoint: JSON values; give it back as ``refused``. Right when nothing is pending."""
        return {"tasks": dict(self._refused), "in_a_row": self._in_a_row}

    def sync(self) -> None:
        """No line that was written before is lost after it."""
        self._log.flush()

    def restart_clock(self) -> None:
        """After anything that is not training."""
        self._tokens = self._work = 0.0
        self._since = time.perf_counter()

    def push(self, step: StepInFlight) -> None:
        """Takes a step that was just sent to the devices; the one before must be flushed."""
        assert self._pending is None
        for metrics in step.metrics:
            for value in metrics.values():
                value.copy_to_host_async()
        self._pending = step
        self._progress.update()

    def flush(self) -> None:
        """Reads the pending step: counts what was refused, writes its line.

        Raises:
          ValueError: too many updates in a row were refused.
        """
        if self._pending is None:
            return
        done, self._pending = self._pending, None
        parts: list[dict[str, np.ndarray]] = jax.device_get([dict(metrics) for metrics in done.metrics])
        self.stop_code = max(self.stop_code, int(parts[-1]["stop"]))
        self._tokens += sum(tokens for tokens, _ in done.work)
        self._work += sum(operations for _, operations in done.work)
        bad = [task for task, finite in zip(self._tasks, parts[-1]["finite"], strict=True) if not finite]
        if done.logged or self._callbacks:
            values = self._values(parts, done.logged)
            if done.logged:
                self._write_line(done.step, values)
            for callback in self._callbacks:
                callback.on_update(done.step, values)
        if bad:
            self._note_refusal(done, bad)
        else:
            self._in_a_row = 0

    def _values(self, parts: list[dict[str, np.ndarray]], logged: bool) -> dict[str, float]:
        """The numbers of an update; rates and leaks are those of logged ones alone."""
        counts = np.sum([part["counts"] for part in parts], axis=0)
        losses = np.sum([part["losses"] * part["counts"] for part in parts], axis=0) / np.maximum(counts, 1)
        values = {f"loss/{task}": float(losses[i]) for i, task in enumerate(self._tasks)}
        values |= {n: float(v) for n, v in parts[-1].items() if n not in ("losses", "counts", "finite", "stop")}
        if not logged:  # leaks were not measured, they stand at 0
            return {name: value for name, value in values.items() if not name.startswith("null_space/leak")}
        elapsed = time.perf_counter() - self._since
        values["tokens_per_second"] = self._tokens / elapsed
        if self._peak is not None and self._work:
            values["mfu"] = self._work / elapsed / self._peak
        return values

    def _write_line(self, step: int, values: Mapping[str, float]) -> None:
        self.write(step, values)
        self._progress.line(step, values)
        self.restart_clock()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes a line of numbers; those that are not finite are left out, JSON has no such numbers."""
        kept = {name: value for name, value in values.items() if math.isfinite(value)}
        self._log.write({"step": step, **kept})
        for writer in self._writers:
            writer.write(step, kept)

    def evaluation(self, step: int, values: Mapping[str, float]) -> None:
        """Writes the line of an evaluation."""
        self.write(step, values)
        for callback in self._callbacks:
            callback.on_evaluation(step, values)

    def _note_refusal(self, done: StepInFlight, bad: list[str]) -> None:
        self._in_a_row += 1
        for task in bad:
            self._refused[task] += 1
        # General text, behind the tasks that have tables, is a stream without numbered rows.
        numbered = [task for task in bad if self._tasks.index(task) < len(done.rows[0])]
        rows = {task: np.concatenate([r[self._tasks.index(task)] for r in done.rows]).tolist() for task in numbered}
        line = {f"refused/{task}": self._refused[task] for task in bad}
        self._log.write({"step": done.step, **line, **{f"refused_rows/{task}": rows[task] for task in numbered}})
        if self._in_a_row >= self._config.max_non_finite:
            raise ValueError(
                f"loss or gradient of task {', '.join(bad)} was not finite in {self._in_a_row} updates in a row, the "
                f"last at step {done.step}; none of them was applied. Lower train.learning_rate or "
                "train.item_learning_rate, lengthen train.warmup, set train.clip 1.0, or compute in float32; the rows "
                "are in metrics.jsonl"
            )
