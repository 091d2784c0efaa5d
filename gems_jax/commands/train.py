"""``gems-jax train``."""

import sys
from typing import Any

from gems_jax.arguments import Command, Options, config_of
from gems_jax.commands.shared import quiet


def _add_options(options: Options) -> None:
    options.add("--workdir", str, "folder of the run", required=True)
    options.flag("--dry-run", "only say what would be done; write nothing")
    options.add("--distributed", bool, "join the cluster that the environment describes", default=False)


def _run(options: Any) -> int:
    if options.dry_run:
        return _dry_run(options)
    from gems_jax.training.distributed.cluster import failing_together, join_cluster

    join_cluster(options.distributed)
    quiet()
    from gems_jax.staging import as_path, check_workdir, check_writable, is_remote
    from gems_jax.training.run_assets import run_assets
    from gems_jax.training.tune import Stopped, tune
    from gems_jax.training.workdir.edits import read_edits
    from gems_jax.training.workdir.files import check_config, check_processes
    from gems_jax.training.workdir.stored_checkpoints import check_package

    config, workdir = config_of(options), as_path(options.workdir)
    check_workdir(workdir, "--workdir")
    check_package(workdir, "--workdir")
    check_processes(config, workdir)
    with failing_together():
        check_config(config, workdir)
        if not is_remote(workdir):
            check_writable(workdir, "--workdir")
    _, assets, null_space = run_assets(config, workdir)
    if (kept := read_edits(workdir)) is not None:
        print(f"train: {kept.notice()}, of which training sees nothing; they stay")
    try:
        tune(config, assets, null_space, workdir)
    except Stopped as stop:
        print(f"gems-jax: {stop}", file=sys.stderr)
        return stop.code
    return 0


def _dry_run(options: Any) -> int:
    quiet()
    from gems_jax.staging import as_path, check_workdir
    from gems_jax.training.dry_run import dry_run
    from gems_jax.training.workdir.files import check_config
    from gems_jax.training.workdir.stored_checkpoints import check_package

    config, workdir = config_of(options), as_path(options.workdir)
    check_workdir(workdir, "--workdir")
    check_package(workdir, "--workdir")
    check_config(config, workdir)
    print(dry_run(config, workdir))
    return 0


TRAIN = Command("tune on all tasks; first make missing inputs; resume a run that was stopped", _run, _add_options)
