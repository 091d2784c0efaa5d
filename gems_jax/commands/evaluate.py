"""``gems-jax evaluate``."""

from typing import Any

from gems_jax.arguments import Command
from gems_jax.commands.shared import quiet, tuned_run


def _run(options: Any) -> int:
    quiet()
    from gems_jax.staging import as_path, check_writable
    from gems_jax.training.evaluate_run import evaluate_run, table_of
    from gems_jax.training.tuned import load_run
    from gems_jax.training.workdir.copies import send_evaluation
    from gems_jax.training.workdir.files import check_config, keep_config

    config, workdir = tuned_run(options, check_config)
    check_writable(options.workdir, "--workdir", stores=True)  # before the ranking
    base, assets, tuned, edits = load_run(config, workdir)
    results = evaluate_run(config, assets, base, tuned, workdir, edits)
    # An evaluation that was refused leaves no trace: the next one takes the run's own options again.
    keep_config(config, workdir)
    send_evaluation(workdir, options.workdir)
    print(table_of(results))
    folder = as_path(options.workdir)
    print(f"evaluate: {folder / 'eval.json'}\nevaluate: {folder / 'report.html'}")
    return 0


EVALUATE = Command("rank both tasks, measure forgetting, write eval.json and report.html", _run, config="of a run")
