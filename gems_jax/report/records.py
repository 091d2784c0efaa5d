"""The records of a work directory: ``metrics.jsonl`` and ``eval.json``."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from gems_jax.config.text_task import TEXT_TASK

# A task's key in eval.json is its name; these are the keys of everything else.
_NOT_TASKS = (
    "general",
    "baselines",
    "comparison",
    "paired",
    "examples",
    "name",
    "continuations",
    "catalogue",
    "edited",
    "unknown_tokens",
    "unknown_words",
)


@dataclasses.dataclass(frozen=True)
class RunRecords:
    """The lines of a run by step, and its evaluation.

    Attributes:
      lines: one dictionary a recorded step, in order of steps; what was recorded twice (a resumed run) once.
      evaluation: content of ``eval.json``, empty if the run has not been evaluated.
    """

    lines: list[dict[str, Any]]
    evaluation: dict[str, Any]

    def series(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values ``[n]`` of the lines that have ``key`` with a finite number."""
        pairs = [(line["step"], line[key]) for line in self.lines if _is_finite(line.get(key))]
        steps, values = zip(*pairs, strict=True) if pairs else ((), ())
        return np.asarray(steps, dtype=np.int64), np.asarray(values, dtype=np.float64)

    def keys(self, prefix: str) -> list[str]:
        """Keys that begin with ``prefix``, in order of appearance."""
        return list(dict.fromkeys(key for line in self.lines for key in line if key.startswith(prefix)))

    def tasks(self) -> list[str]:
        """Names of the tasks, of the evaluation first; where there is one, of those that are ranked."""
        evaluated = [key for key, value in self.evaluation.items() if key not in _NOT_TASKS and isinstance(value, dict)]
        trained = [key.removeprefix("loss/") for key in self.keys("loss/")]
        # General text as a task is trained on and not ranked.
        trained = [task for task in trained if task != TEXT_TASK] if evaluated else trained
        return list(dict.fromkeys(evaluated + trained))

    def of_catalogue(self) -> RunRecords | None:
        """The evaluation among the whole catalogue, where there is one beside that among sampled items."""
        part = self.evaluation.get("catalogue")
        if not part:
            return None
        same = {key: self.evaluation[key] for key in ("name", "catalogue_size") if key in self.evaluation}
        return RunRecords([], same | part)


def read_records(workdir: Path) -> RunRecords:
    """Reads what a work directory has recorded.

    A last line cut short by a killed process is left out; any other malformed line is an error.

    Args:
      workdir: folder with ``metrics.jsonl``, ``eval.json`` or both.

    Returns:
      The records.

    Raises:
      FileNotFoundError: if neither file is there.
      ValueError: if a file holds something else than expected; names the file and line.
    """
    metrics, evaluation = workdir / "metrics.jsonl", workdir / "eval.json"
    if not metrics.is_file() and not evaluation.is_file():
        raise FileNotFoundError(
            f"{workdir} holds neither metrics.jsonl nor eval.json: there is nothing to report; "
            "train or evaluate into this folder first"
        )
    return RunRecords(
        lines=_read_lines(metrics) if metrics.is_file() else [],
        evaluation=_read_evaluation(evaluation) if evaluation.is_file() else {},
    )


def _read_lines(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8")
    by_step: dict[int, dict[str, Any]] = {}
    rows = text.split("\n")
    for number, row in enumerate(rows, 1):
        if not row.strip():
            continue
        try:
            line = json.loads(row)
        except json.JSONDecodeError as error:
            if number == len(rows):  # no newline behind it: the process was stopped while it wrote
                continue
            raise ValueError(f"{path}, line {number}: not JSON ({error.msg}); remove the line") from None
        if not isinstance(line, dict) or not isinstance(line.get("step"), int):
            raise ValueError(f'{path}, line {number}: expected an object with a whole number as "step"')
        by_step[line["step"]] = by_step.get(line["step"], {}) | line
    return [by_step[step] for step in sorted(by_step)]


def _read_evaluation(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: not JSON ({error.msg}); evaluate again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected an object with one entry a task, found {type(content).__name__}")
    return content


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))
