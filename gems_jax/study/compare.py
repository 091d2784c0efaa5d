"""The study: trial after trial, each once, by any number of processes."""

import contextlib
import functools
import json
import operator
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from gems_jax.config.paths import absolute, is_path, same_files
from gems_jax.config.renamed import current_values
from gems_jax.config.run import Config
from gems_jax.staging import write_json
from gems_jax.study.claims import WAIT, claim, claim_waiting
from gems_jax.study.config import StudyConfig
from gems_jax.study.run_trial import result_line, run_trial
from gems_jax.study.shared import Shared
from gems_jax.study.stopping import Stopping
from gems_jax.study.summary import summarise_study
from gems_jax.study.trials import Trial, read_result, spelled, total_trials, wanted_trials
from gems_jax.training.workdir.files import as_json, flatten, shown_differences


def compare(config: Config, study: StudyConfig, workdir: Path, command: str, run: bool = True) -> dict[str, Any]:
    """Runs what is missing of a study and writes ``study.json``.

    Trials are independent: a study that was stopped goes on where it was, and several processes on one work directory
    share the trials: each takes on one method after another, the main ones first, and helps with their trials before
    it turns to the others.

    Args:
      config: what all methods have in common.
      study: methods, seeds, learning rates.
      workdir: of the study.
      command: that made it, for the record.
      run: whether missing trials are run; otherwise what is finished is summed up.

    Returns:
      What ``study.json`` holds.

    Raises:
      ValueError: a work directory of other settings; options that cannot be; nothing to sum up.
      Stopped: after a signal.
    """
    study = study.with_rate(config.train.learning_rate)
    with claim_waiting(workdir / "claims" / "settings"):
        check_settings(config, study, workdir)
    results: dict[Trial, dict[str, Any]] = {}
    with Stopping(), _kept_programs(workdir / "compiled"):
        if run:
            shared = Shared(config, study, workdir)
            attempt = functools.partial(_try, config, study, results=results, shared=shared, workdir=workdir)
            with contextlib.ExitStack() as claims:
                mine: set[str] = set()
                while missing := _missing(study, results, workdir):
                    main = [trial for trial in missing if trial.method in study.main]
                    for trials in (main, [trial for trial in missing if trial not in main]):
                        # Trials that other processes work on wait: they may be finished when their turn comes again.
                        if any(attempt(trial) for trial in trials if trial.method in mine):
                            break
                        if (method := _take_method(trials, mine, claims, workdir)) is not None:
                            mine.add(method)
                            break
                        if any(attempt(trial) for trial in trials):
                            break
                    else:
                        time.sleep(WAIT)
        else:
            _missing(study, results, workdir)
        if not results:
            raise ValueError(f"{workdir} holds no finished row: run gems-jax compare without --summarise")
        summary = summarise_study(config, study, results, workdir, command)
    write_json(workdir / "study.json", summary)
    return summary


def _missing(study: StudyConfig, results: dict[Trial, dict[str, Any]], workdir: Path) -> list[Trial]:
    """Wanted trials that are not finished; reads those that are into ``results``."""
    while True:
        missing = [trial for trial in wanted_trials(study, results) if trial not in results]
        finished = {trial: result for trial in missing if (result := read_result(workdir, trial)) is not None}
        if not finished:
            return missing
        results.update(finished)  # which may make more trials wanted


def _take_method(missing: list[Trial], mine: set[str], claims: contextlib.ExitStack, workdir: Path) -> str | None:
    """A method whose trials no process has taken on yet: trials of one method share a compiled program in a process."""
    for method in dict.fromkeys(trial.method for trial in missing if trial.method not in mine):
        with contextlib.ExitStack() as attempt:
            if attempt.enter_context(claim(workdir / "claims" / "methods" / method)):
                claims.push(attempt.pop_all())  # held until the study ends; others are let go of at once
                return method
    return None


def _try(
    config: Config,
    study: StudyConfig,
    trial: Trial,
    results: dict[Trial, dict[str, Any]],
    shared: Shared,
    workdir: Path,
) -> bool:
    """Runs a trial unless another process does; whether there is news."""
    with claim(workdir / "claims" / f"{trial.method}-{spelled(trial.rates, '-')}-{trial.seed}") as held:
        if not held:
            return False
        result = read_result(workdir, trial)  # by another process, since it was found missing
        if result is None:
            print(f"compare: row {len(results) + 1} of {total_trials(study, results)}: {trial}", flush=True)
            look_closer = trial.method in study.main and trial.seed == study.seeds_of(trial.method)[0]
            result = run_trial(config, trial, shared, workdir, look_closer)
            print(f"compare: {result_line(trial, result, study.metric)}", flush=True)
        results[trial] = result
    return True


def check_settings(config: Config, study: StudyConfig, workdir: Path) -> None:
    """Keeps the settings that decide what a trial finds, or checks that they are those of the work directory.

    Raises:
      ValueError: they differ (named).
    """
    # Where things lie, and what of the study may grow from one call to the next.
    free = {"name", "data.dir", "data.path", "model.path", "model.from_text", "null_space.path", "evaluate.samples"}
    free |= {"data.tokens", "data.prefetch", "data.threads", "train.hang_after", "train.writers", "train.profile"}
    free |= {"items.path", "train.method", "train.learning_rate", "train.seed"}  # what trials differ in
    free |= {"train.item_learning_rate"} if study.item_grid else set()
    settings = flatten(absolute(as_json(config)))
    settings = {k: v for k, v in settings.items() if k not in free and not k.startswith("pretrain.")}
    settings["study.valid_rows"] = study.valid_rows
    path = workdir / "settings.json"
    if not path.is_file():
        write_json(path, settings)
        return
    kept = current_values(json.loads(path.read_text(encoding="utf-8")))
    # A field that did not exist yet had no effect, as its default has none.
    there = {name: kept.get(name, default) for name, default in (flatten(as_json(Config())) | kept).items()}
    there = {name: absolute({name: value})[name] for name, value in there.items()}  # paths were relative once
    differ = [
        name
        for name in sorted(settings)
        if not (same_files if is_path(name) else operator.eq)(there.get(name), settings[name])
    ]
    if differ:
        shown = shown_differences(there, settings, differ)
        raise ValueError(f"{workdir} holds a study of other settings ({shown}); choose another --workdir")


@contextlib.contextmanager
def _kept_programs(folder: Path) -> Iterator[None]:
    """Compiled programs are kept on disk: trials of one method and learning rate share them, in any process."""
    if jax.config.values["jax_compilation_cache_dir"]:  # they are kept elsewhere already
        yield
        return
    wanted = {"jax_compilation_cache_dir": str(folder.resolve()), "jax_persistent_cache_min_compile_time_secs": 0.2}
    before = {name: jax.config.values[name] for name in wanted}
    for name, value in wanted.items():
        jax.config.update(name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
