"""From finished trials to what a study says: chosen learning rates, means, spreads, paired significance."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gems_jax.config.run import Config
from gems_jax.evaluation.evaluate import load_rankings
from gems_jax.evaluation.paired import metric_of_rows, paired_test
from gems_jax.study.config import StudyConfig
from gems_jax.study.frontier import LIMITS, best_within, points_of
from gems_jax.study.methods import Rates, study_methods
from gems_jax.study.trials import Trial, affordable_rates, chosen_rates, forgetting_allowed, total_trials
from gems_jax.training.workdir.files import as_json

Results = Mapping[Trial, Mapping[str, Any]]
COMPARED = ("ndcg@10", "hit@10")
# A trial's numbers beside its metrics; its costs depend on the machine.
_COSTS = ("seconds", "processor_seconds", "tune_seconds", "evaluate_seconds", "peak_memory")
_NUMBERS = (*_COSTS, "optimiser_bytes")


def summarise_study(
    config: Config, study: StudyConfig, results: Results, workdir: Path, command: str
) -> dict[str, Any]:
    """Makes the content of ``study.json``: JSON values, all that the page is made of.

    Args:
      config: of the study.
      study: of the study.
      results: what the finished trials have found.
      workdir: of the study: its trials' rankings, ``base.json``.
      command: that made it.
    """
    rates = {name: chosen_rates(study, results, name) for name in study.names()}
    finals = {name: _final_trials(study, results, name, rate) for name, rate in rates.items()}
    within = {name: affordable_rates(study, results, name) for name in study.names()}
    affordable = {name: _final_trials(study, results, name, rate) for name, rate in within.items()}
    shown = {
        name: [*finals[name], *(trial for trial in affordable[name] if trial not in finals[name])] for name in finals
    }
    rows: list[dict[str, Any]] = [
        {
            "method": trial.method,
            "learning_rate": trial.learning_rate,
            "item_learning_rate": trial.item_learning_rate,
            "seed": trial.seed,
            "chosen": trial in finals[trial.method],
        }
        | _row_numbers(result)
        for trial, result in sorted(results.items())
        if trial.method in finals
    ]
    summary: dict[str, Any] = {
        "format": 1,
        "command": command,
        "circumstances": _circumstances(shown, results),
        "settings": as_json(config),
        "study": {
            "methods": list(study.names()), "main": list(study.main), "seeds": study.seeds,
            "rest_seeds": study.rest_seeds, "grid": list(study.grid), "item_grid": list(study.item_grid),
            "metric": study.metric, "valid_rows": study.valid_rows, "reference": study.reference,
            "budget": study.budget, "forgetting_allowed": forgetting_allowed(study, results),
            "budget_over": "all tokens",
            "rows": total_trials(study, results),
            "finished": len(results),
        },
        "base": _read(workdir / "base.json"),
        "methods": [],
        "rows": rows,
    }  # fmt: skip
    for name, chosen in rates.items():
        entry: dict[str, Any] = {"name": name, "label": study_methods()[name].label}
        entry |= _choice(chosen, [results[trial] for trial in finals[name]])
        rate = entry["learning_rate"]
        entry["at_edge"] = rate is not None and len(study.grid) > 2 and rate in (min(study.grid), max(study.grid))
        entry["seeds"] = [trial.seed for trial in finals[name]]
        entry["diverged"] = sum("diverged" in results[trial] for trial in results if trial.method == name)
        if finals[name]:
            first = results[finals[name][0]]
            entry |= {"curves": first.get("curves", {}), "spectra": first.get("spectra", {})}
        if affordable[name]:
            bounded = _choice(within[name], [results[trial] for trial in affordable[name]])
            entry["within_budget"] = bounded | {"seeds": [trial.seed for trial in affordable[name]]}
        summary["methods"].append(entry)
    tasks = sorted({task for row in rows for task in row.get("test", {})})
    reference = finals.get(study.reference, [])
    others = [m for m in summary["methods"] if m["name"] != study.reference]
    add_significance({m["name"]: m for m in others}, finals, reference, tasks, workdir)
    add_significance(
        {m["name"]: m["within_budget"] for m in others if "within_budget" in m}, affordable, reference, tasks, workdir
    )
    summary["at_equal_forgetting"] = _at_equal_forgetting(summary, study, tasks, workdir)
    return summary


def _at_equal_forgetting(
    summary: Mapping[str, Any], study: StudyConfig, tasks: Sequence[str], workdir: Path
) -> dict[str, dict[str, Any]]:
    """By limit on forgetting and method: the first seed's run that ranks best within it, and its tests."""
    found: dict[str, dict[str, Any]] = {}
    for limit in LIMITS:
        trials, entries = {}, {}
        for name in study.names():
            best = best_within(points_of(summary, name), limit)
            if best is not None and "test" in best.row:
                row = best.row
                trials[name] = [Trial(row["method"], row["learning_rate"], 0, row["item_learning_rate"])]
                entries[name] = {key: row[key] for key in ("method", "learning_rate", "item_learning_rate")}
        reference = trials.get(study.reference, [])
        others = {name: entry for name, entry in entries.items() if name != study.reference}
        add_significance(others, trials, reference, tasks, workdir)
        found[f"{limit:g}"] = entries
    return found


def _choice(rates: Rates | None, trials: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Chosen learning rates and, of the finished trials that they were run with, means and spreads."""
    rate, items = rates or (None, None)
    entry: dict[str, Any] = {"learning_rate": rate, "item_learning_rate": items}
    if trials:
        costs, entry["timed_on"] = _costs(trials)
        entry["numbers"] = spread([_flat(_row_numbers(one)) for one in trials]) | costs
    return entry


def _circumstances(finals: Mapping[str, Sequence[Trial]], results: Results) -> list[dict[str, Any]]:
    """Where and when the final trials were run: circumstances, each once, with the methods and the number of trials."""
    circumstances: list[dict[str, Any]] = []
    for method, trials in finals.items():
        for trial in trials:
            where = dict(results[trial].get("circumstances", {}))
            known = next((entry for entry in circumstances if entry["where"] == where), None)
            if known is None:
                known = {"where": where, "methods": [], "rows": 0}
                circumstances.append(known)
            known["rows"] += 1
            if method not in known["methods"]:
                known["methods"].append(method)
    return circumstances


def _final_trials(study: StudyConfig, results: Results, method: str, rates: Rates | None) -> list[Trial]:
    if rates is None:
        return []
    trials = [Trial(method, rates[0], seed, rates[1]) for seed in study.seeds_of(method)]
    return [trial for trial in trials if "test" in results.get(trial, {})]


def _row_numbers(result: Mapping[str, Any]) -> dict[str, Any]:
    """A trial's numbers, without curves and settings; the layers' output shifts as their mean."""
    kept = {key: result[key] for key in ("diverged", "resumed", *_NUMBERS) if key in result}
    for split in ("valid", "test"):
        if split in result:  # the released code's variants stay with the trial
            kept[split] = {
                task: {name: value for name, value in values.items() if not name.startswith("released_")}
                for task, values in result[split].items()
            }
    if "general" in result:
        general = dict(result["general"])
        shifts = [np.ravel(value) for value in general.pop("shift", {}).values()]
        kept["general"] = general | ({"shift": float(np.mean(np.concatenate(shifts)))} if shifts else {})
    return kept


def _costs(trials: Sequence[Mapping[str, Any]]) -> tuple[dict[str, dict[str, float | None]], str]:
    """Times and memory, over the trials that ran where most of a method's did; and where that was."""
    machines = [
        (where.get("machine"), where.get("device")) for where in (one.get("circumstances", {}) for one in trials)
    ]
    most = statistics.mode(machines)
    there = [one for one, machine in zip(trials, machines, strict=True) if machine == most]
    costs = spread([_flat({name: one[name] for name in _COSTS if name in one}) for one in there])
    return costs, ", ".join(str(part) for part in most if part)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    flat: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            flat[prefix + name] = float(value)
    return flat


def spread(rows: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float | None]]:
    """Mean and standard deviation over rows of each number that all have.

    Example:
      >>> spread([{"a": 1.0}, {"a": 3.0}])
      {'a': {'mean': 2.0, 'sd': 1.4142135623730951}}
      >>> spread([{"a": 1.0}])
      {'a': {'mean': 1.0, 'sd': None}}
    """
    shared = [name for name in rows[0] if all(name in row for row in rows)]
    spreads: dict[str, dict[str, float | None]] = {}
    for name in shared:
        values = np.array([row[name] for row in rows])
        spreads[name] = {"mean": float(values.mean()), "sd": float(values.std(ddof=1)) if len(values) > 1 else None}
    return spreads


def add_significance(
    entries: Mapping[str, dict[str, Any]],
    finals: Mapping[str, Sequence[Trial]],
    reference_trials: Sequence[Trial],
    tasks: Sequence[str],
    workdir: Path,
) -> None:
    """Adds ``"against"`` to each method's entry: its paired tests against the reference, corrected for their number.

    A test row's metric is averaged over the seeds that both methods have, the same for both, so that order and rows
    are shared; then whole users' differences are permuted (`gems_jax.evaluation.paired.paired_test`). That says whether
    other users would have shown the same, for models such as these; how much models differ by seed is the standard
    deviation beside it. The p-values of all methods for a task and metric are corrected by Holm (1979).
    """
    reference = {trial.seed: trial for trial in reference_trials}
    for task in tasks:
        for metric in COMPARED:
            tested: list[dict[str, Any]] = []
            for name, entry in entries.items():
                own = {trial.seed: trial for trial in finals[name]}
                seeds = sorted(set(own) & set(reference))
                if not seeds:
                    continue
                (a, users), (b, _) = (
                    _mean_of_rows(trials, seeds, task, metric, workdir) for trials in (own, reference)
                )
                test_result = paired_test(a, b, users)._asdict() | {"seeds": len(seeds)}
                entry.setdefault("against", {})[f"{task}/{metric}"] = test_result
                tested.append(test_result)
            for test_result, corrected in zip(tested, holm([one["p_value"] for one in tested]), strict=True):
                test_result["p_corrected"] = corrected


def _mean_of_rows(
    trials: Mapping[int, Trial], seeds: Sequence[int], task: str, metric: str, workdir: Path
) -> tuple[np.ndarray, np.ndarray]:
    """A metric of each test row, its mean over seeds, and the row's user."""
    values, users = [], np.zeros(0)
    for seed in seeds:
        rankings = load_rankings(trials[seed].folder(workdir) / f"ranking_{task}.npz")
        values.append(metric_of_rows(rankings, metric))
        users = rankings["user_ids"]
    return np.mean(values, axis=0), users


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm, 1979): ``max_{j<=i} (m - j + 1) p_(j)``, at most 1.

    Example:
      >>> [round(p, 3) for p in holm([0.04, 0.01, 0.03])]
      [0.06, 0.03, 0.06]
    """
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
