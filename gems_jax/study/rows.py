"""The rows of a study: which are wanted, where they lie, what they found."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gems_jax.staging import write_json
from gems_jax.study.config import StudyConfig
from gems_jax.study.methods import Rates

Results = Mapping["Row", Mapping[str, Any]]


@dataclasses.dataclass(frozen=True, order=True)
class Row:
    """One run of a study: a method with a learning rate of kernels, a seed and, if it is tried, a rate of item rows."""

    method: str
    learning_rate: float
    seed: int
    item_learning_rate: float | None = None

    @property
    def rates(self) -> Rates:
        """Of kernels and of item rows."""
        return self.learning_rate, self.item_learning_rate

    def folder(self, workdir: Path) -> Path:
        """Where the run lies.

        Example:
          >>> Row("gems", 3e-3, 1).folder(Path("study")).as_posix()
          'study/runs/gems/0.003/1'
          >>> Row("gems", 3e-3, 1, 1e-2).folder(Path("study")).as_posix()
          'study/runs/gems/0.003-0.01/1'
        """
        return workdir / "runs" / self.method / spelled(self.rates, "-") / str(self.seed)

    def __str__(self) -> str:
        return f"{self.method}, learning rate {spelled(self.rates)}, seed {self.seed}"


def spelled(rates: Rates, between: str = ", items ") -> str:
    """Learning rates for readers.

    Example:
      >>> spelled((1e-3, None)), spelled((1e-3, 1e-2))
      ('0.001', '0.001, items 0.01')
    """
    return between.join(f"{rate:g}" for rate in rates if rate is not None)


def read_result(workdir: Path, row: Row) -> dict[str, Any] | None:
    """What a finished row has found; ``None`` where it is not finished.

    Raises:
      ValueError: the file is damaged.
    """
    path = row.folder(workdir) / "result.json"
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except ValueError:
        raise ValueError(f"{path} is damaged: remove it, and the row is run again") from None


def write_result(workdir: Path, row: Row, result: Mapping[str, Any]) -> None:
    """Says that a row is finished."""
    write_json(row.folder(workdir) / "result.json", dict(result))


def validation_score(result: Mapping[str, Any], metric: str) -> float:
    """Mean of a metric over tasks on validation rows; -inf of a run that diverged."""
    if "valid" not in result:
        return -np.inf
    return float(np.mean([found[metric] for found in result["valid"].values()]))


def chosen_rates(study: StudyConfig, results: Results, method: str) -> Rates | None:
    """The learning rates that validation rows choose, the smaller of two equal ones.

    Returns:
      ``None`` while the grid is not finished, or where every run of it diverged.
    """
    grid = [Row(method, rate, study.seeds_of(method)[0], items) for rate, items in study.rates()]
    if any(row not in results for row in grid):
        return None
    scores = [validation_score(results[row], study.metric) for row in grid]
    best = int(np.argmax(scores))
    return grid[best].rates if scores[best] > -np.inf else None


def wanted_rows(study: StudyConfig, results: Results) -> list[Row]:
    """The rows known to be wanted, in the order they are run: main methods first, each kind's grid before its seeds.

    The seeds of a method appear when its grid is finished.
    """
    rows: list[Row] = []
    names = study.names()
    for group in ([n for n in names if n in study.main], [n for n in names if n not in study.main]):
        rows += [Row(name, rate, study.seeds_of(name)[0], items) for name in group for rate, items in study.rates()]
        for place in range(1, max([len(study.seeds_of(name)) for name in group], default=0)):
            for name in group:
                rates = chosen_rates(study, results, name)
                if rates is not None and place < len(study.seeds_of(name)):
                    rows.append(Row(name, rates[0], study.seeds_of(name)[place], rates[1]))
    return rows


def total_rows(study: StudyConfig) -> int:
    """Rows of the whole study."""
    return sum(len(study.rates()) + len(study.seeds_of(name)) - 1 for name in study.names())
