"""``gems-jax compare``."""

import json
import shlex
import sys
from pathlib import Path
from typing import Any

from gems_jax.arguments import Command, Options, config_of
from gems_jax.commands.shared import quiet
from gems_jax.staging import check_workdir, check_writable, is_remote
from gems_jax.study.config import StudyConfig


def _add_options(options: Options) -> None:
    add = options.add
    add("--workdir", str, "folder of the study; needed to run one", default=None)
    options.flag("--summarise", "run nothing; sum up the runs that are finished")
    add("--page", str, "Markdown file to write from the results", default=None)
    about = "study.json to make --page from, without running anything; default: that of --workdir"
    add("--results", str, about, default=None)
    options.section("study", StudyConfig)


def _run(options: Any) -> int:
    quiet()
    from gems_jax.study.compare import compare
    from gems_jax.study.page import read_summary, task_names, write_page
    from gems_jax.study.tables import summary_table
    from gems_jax.training.tune import Stopped

    if options.results is not None and options.page is None:
        raise ValueError("--results is what a page is made from: name the file to write as --page")
    if options.results is None and options.workdir is None:
        raise ValueError("compare needs --workdir, a folder for the study, or --results and --page")
    for name in ("results", "page"):
        if options[name] is not None and is_remote(options[name]):
            raise ValueError(f"--{name} {options[name]} is on an object store: give a file on this machine")
    results = options.results
    if results is None:
        check_writable(options.workdir, "--workdir")
        workdir = Path(options.workdir)
        if not options.summarise:
            check_workdir(workdir, "--workdir")
        command = shlex.join(["gems-jax", *options.given])
        try:
            compare(config_of(options), options.study, workdir, command, run=not options.summarise)
        except Stopped as stop:
            print(f"gems-jax: {stop}", file=sys.stderr)
            return stop.code
        results = workdir / "study.json"
        if any("numbers" in method for method in json.loads(results.read_text(encoding="utf-8"))["methods"]):
            summary = read_summary(results)
            print(summary_table(summary, task_names(summary)))
        print(f"compare: {results}")
    if options.page is not None:
        write_page(Path(results), Path(options.page))
        print(f"compare: {options.page}")
    return 0


COMPARE = Command("tune by several methods with the same effort for each; resume; write study.json", _run, _add_options)
