"""``gems-jax demo``."""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gems_jax.arguments import Command, Options, config_of
from gems_jax.commands.serve import PORT
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
    print(_how_to_ask(options.workdir))
    print(f"report: {report.resolve()}")
    return 0


def _how_to_ask(workdir: str) -> str:
    """The commands that open the page of a service, as this one was called."""
    here = Path(sys.argv[0])
    command, pip = (str(here), str(here.with_name("pip"))) if here.name == "gems-jax" else ("gems-jax", "pip")
    missing = [name for name in ("starlette", "uvicorn") if find_spec(name) is None]
    install = f"{pip} install '.[train,serve]', then " if missing else ""
    return f"ask it in a browser: {install}{command} serve --workdir {workdir}, and open http://127.0.0.1:{PORT}"


DEMO = Command("run the whole path on a tiny model and write a report", _run, _add_options)
