"""The trials of a study: which are wanted, where they lie, what they found."""

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from gems_jax.staging import write_json
from gems_jax.study.config import StudyConfig
from gems_jax.study.methods import Rates
from gems_jax.study.old_names import FORGETTING, in_today_s_names

Results = Mapping["Trial", Mapping[str, Any]]


@dataclasses.dataclass(frozen=True, order=True)
class Trial:
    """One run of a study: a method with a learning rate of kernels, a seed and, if it is tried, a rate of item rows."""

    method: str
    learning_rate: float
    seed: int
    item_learning_rate: float | None = None

    @property
    def rates(self) -> Rates:
        """Learning rates of kernels and of item rows."""
        return self.learning_rate, self.item_learning_rate

    def folder(self, workdir: Path) -> Path:
        """Where the run lies.

        Example:
          >>> Trial("gems", 3e-3, 1).folder(Path("study")).as_posix()
          'study/runs/gems/0.003/1'
          >>> Trial("gems", 3e-3, 1, 1e-2).folder(Path("study")).as_posix()
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


def read_result(workdir: Path, trial: Trial) -> dict[str, Any] | None:
    """Reads the result of a finished trial; ``None`` where it is not finished.

    Raises:
      ValueError: the file is damaged.
    """
    path = trial.folder(workdir) / "result.json"
    try:
        return dict(in_today_s_names(json.loads(path.read_text(encoding="utf-8"))))
    except FileNotFoundError:
        return None
    except ValueError:
        raise ValueError(f"{path} is damaged: remove it, and the row is run again") from None


def write_result(workdir: Path, trial: Trial, result: Mapping[str, Any]) -> None:
    """Says that a trial is finished."""
    write_json(trial.folder(workdir) / "result.json", dict(result))


def validation_score(result: Mapping[str, Any], metric: str) -> float:
    """Mean of a metric over tasks on validation rows; -inf of a run that diverged."""
    if "valid" not in result:
        return -np.inf
    return float(np.mean([metrics[metric] for metrics in result["valid"].values()]))


def chosen_rates(study: StudyConfig, results: Results, method: str) -> Rates | None:
    """The learning rates that validation rows choose, the smaller of two equal ones.

    Returns:
      ``None`` while the grid is not finished, or where every run of it diverged.
    """
    return next(iter(_by_score(study, results, method)), None)


def affordable_rates(study: StudyConfig, results: Results, method: str) -> Rates | None:
    """The learning rates that validation rows choose among those within the study's budget of forgetting.

    Forgetting differs much by seed: it is the mean over a method's seeds that must be within the budget. Learning rates
    whose first seed is within it are run with the other seeds, the best first; where the mean turns out to be above,
    the next best follow.

    Returns:
      ``None`` while the reference or the method's grid is not finished, where nothing is within the budget, for the
      reference itself, and for a study without a budget.
    """
    tried, within = _budget_trials(study, results, method)
    return tried[-1] if within else None


def _budget_trials(study: StudyConfig, results: Results, method: str) -> tuple[list[Rates], bool]:
    """The learning rates that a budget asks the seeds of, in their order, and whether the last is within it."""
    allowed = forgetting_allowed(study, results)
    if allowed is None or method == study.reference:
        return [], False
    tried = []
    for rates in _by_score(study, results, method):
        trials = _seed_trials(study, method, rates)
        if mean_forgetting(results, trials[:1]) > allowed:
            continue
        tried.append(rates)
        if any(trial not in results for trial in trials) or mean_forgetting(results, trials) <= allowed:
            return tried, True
    return tried, False


def forgetting_allowed(study: StudyConfig, results: Results) -> float | None:
    """``study.budget`` times the mean forgetting of the reference at its chosen learning rates.

    Returns:
      ``None`` without a budget, and while a seed of the reference is not finished.
    """
    if study.budget is None or (rates := chosen_rates(study, results, study.reference)) is None:
        return None
    trials = _seed_trials(study, study.reference, rates)
    return study.budget * mean_forgetting(results, trials) if all(trial in results for trial in trials) else None


def mean_forgetting(results: Results, trials: Sequence[Trial]) -> float:
    """The mean rise of the loss on general text, over the trials that did not diverge."""
    return float(np.mean([results[trial]["general"][FORGETTING] for trial in trials if "general" in results[trial]]))


def _by_score(study: StudyConfig, results: Results, method: str) -> list[Rates]:
    """The learning rates of a finished grid that did not diverge, best first; none of an unfinished one."""
    grid = [Trial(method, rate, study.seeds_of(method)[0], items) for rate, items in study.rates(method)]
    if any(trial not in results for trial in grid):
        return []
    scores = {trial.rates: validation_score(results[trial], study.metric) for trial in grid}
    return sorted((rates for rates, score in scores.items() if score > -np.inf), key=lambda rates: -scores[rates])


def _seed_trials(study: StudyConfig, method: str, rates: Rates) -> list[Trial]:
    return [Trial(method, rates[0], seed, rates[1]) for seed in study.seeds_of(method)]


def wanted_trials(study: StudyConfig, results: Results) -> list[Trial]:
    """The trials known to be wanted, in the order they are run: main methods first, each kind's grid before its seeds.

    The seeds of a method appear when its grid is finished, those within the budget behind them.
    """
    trials: list[Trial] = []
    names = study.names()
    for group in ([n for n in names if n in study.main], [n for n in names if n not in study.main]):
        trials += [
            Trial(name, rate, study.seeds_of(name)[0], items) for name in group for rate, items in study.rates(name)
        ]
        chosen = [(name, _by_score(study, results, name)[:1]) for name in group]
        tried = [(name, _budget_trials(study, results, name)[0]) for name in group]
        for kind in (chosen, tried):
            kept = [_seed_trials(study, name, rates)[1:] for name, all_rates in kind for rates in all_rates]
            # Seed after seed, each with all methods.
            trials += [trial for turn in itertools.zip_longest(*kept) for trial in turn if trial is not None]
    return list(dict.fromkeys(trials))


def total_trials(study: StudyConfig, results: Results = MappingProxyType({})) -> int:
    """Rows of the whole study, as far as it is known: what a budget adds shows when the grids are finished."""
    total = sum(len(study.rates(name)) + len(study.seeds_of(name)) - 1 for name in study.names())
    for name in study.names():
        more = set(_budget_trials(study, results, name)[0]) - {chosen_rates(study, results, name)}
        total += len(more) * (len(study.seeds_of(name)) - 1)
    return total
