"""``gems-jax demo``."""

from pathlib import Path
from typing import Any

from gems_jax.arguments import Command, Options, config_of
from gems_jax.commands.shared import quiet


def _add_options(options: Options) -> None:
    options.add("--workdir", str, "folder of the run", default="runs/demo/gems")


def _run(options: Any) -> int:
    quiet()
    from gems_jax.staging import check_workdir, check_writable
    from gems_jax.training.demo import demo

    check_workdir(options.workdir, "--workdir")
    check_writable(options.workdir, "--workdir")
    report = demo(config_of(options), Path(options.workdir))
    print(f"report: {report.resolve()}")
    return 0


DEMO = Command("run the whole path on a tiny model and write a report", _run, _add_options)
