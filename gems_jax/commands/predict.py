"""``gems-jax predict``."""

from typing import Any

from gems_jax.arguments import Command, Options
from gems_jax.commands.shared import quiet, tuned_run


def _add_options(options: Options) -> None:
    options.add("--requests", str, "file of requests: .jsonl, .csv or .parquet", required=True)
    options.add("--out", str, "file of answers to write: .jsonl or .parquet", required=True)


def _run(options: Any) -> int:
    quiet()
    from gems_jax.serving.predict import check_paths, predict
    from gems_jax.serving.recommender import load_engine
    from gems_jax.staging import as_path
    from gems_jax.training.workdir.files import check_config
    from gems_jax.training.workdir.fingerprint import model_fingerprint

    requests, out = as_path(options.requests), as_path(options.out)
    check_paths(requests, out)
    config, workdir = tuned_run(options, check_config)
    engine = load_engine(config, workdir)
    done = predict(engine, requests, out, model_fingerprint(config, workdir), progress=True)
    print(f"predict: {done.answered:,} requests answered in {out}")
    if done.left_out:
        why = ", ".join(f"{what}: {count:,}" for what, count in done.left_out.most_common())
        print(f"predict: {done.left_out.total():,} rows left out ({why}), with reasons in {out}.quarantine.jsonl")
    return 0


PREDICT = Command("answer a file of requests; go on where a killed run was", _run, _add_options, config="of a run")
