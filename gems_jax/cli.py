"""The command ``gems-jax``."""

import argparse
import difflib
import os
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
EXIT_STOPPED = 143

_COMMANDS = {
    "demo": "the whole path on a tiny model, ends in a report",
    "prepare": "raw interactions -> validated, split dataset; bad rows quarantined and counted",
    "pretrain": "a small base model from plain text",
    "calibrate": "general text -> null space of the base model",
    "train": "tune on all tasks; first makes what is missing; resumes by itself",
    "evaluate": "rank both tasks, measure general-domain drift, write eval.json and report.html",
    "export": "the tuned model as a Hugging Face folder",
    "recommend": "what a tuned model recommends to a user next",
    "search": "what a tuned model finds for a user's query",
    "compare": "many methods with the same effort for each; resumes by itself; ends in study.json and a page",
}
# They work on a finished run, and without --config with its own.
_ON_A_RUN = ("evaluate", "export", "recommend", "search")


def main(argv: list[str] | None = None) -> int:
    """Runs a command and returns its exit code: 0 done, 2 bad input, 130 or 143 stopped by Ctrl-C or SIGTERM."""
    argv = sys.argv[1:] if argv is None else argv
    if "OPENBLAS_NUM_THREADS" not in os.environ:
        # LAPACK's threads fight XLA's on CPU (an SVD of 256 x 256 takes 100 times as long), and the variable is
        # read when the library is loaded: start again with it.
        os.environ["OPENBLAS_NUM_THREADS"] = "1"
        os.execv(sys.executable, [sys.executable, "-m", "gems_jax.cli", *argv])
    try:
        command, options = parse(argv)
        return command(options)
    except (ValueError, TypeError, OSError, argparse.ArgumentError) as error:
        if os.environ.get("GEMS_JAX_TRACEBACK"):
            raise
        print(f"gems-jax: error: {_explain(error)}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except MemoryError as error:
        if os.environ.get("GEMS_JAX_TRACEBACK"):
            raise
        why = f": {error}" if str(error) else ""
        print(
            f"gems-jax: error: there is not enough memory{why}; use smaller batches (train.accumulate, "
            "evaluate.batch_size), fewer rows (evaluate.rows) or a larger machine",
            file=sys.stderr,
        )
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("gems-jax: left", file=sys.stderr)
        return EXIT_INTERRUPTED


def _explain(error: Exception) -> str:
    """The error's text; an unknown option or field with the nearest valid one."""
    text = str(error)
    unknown = re.search(r"unrecognized arguments: --([\w.]+)|does not accept option '([\w.]+)'", text)
    if unknown:
        name = unknown.group(1) or unknown.group(2)
        near = difflib.get_close_matches(name, _fields(), n=1, cutoff=0.5)
        text += f"; did you mean {near[0]!r}?" if near else "; --help lists the fields"
    wrong = re.search(r"typing\.Literal\[(.*?)\]\. Got value: (\S+)", text)
    if wrong:
        near = difflib.get_close_matches(wrong.group(2), re.findall(r"'([^']*)'", wrong.group(1)), n=1, cutoff=0.5)
        text += f"; did you mean {near[0]!r}?" if near else ""
    if text.startswith("Problems parsing config"):  # it does not say which
        text = text.replace("parsing config", "parsing the file of --config", 1).replace('in "<unicode string>", ', "")
    return text


def _fields() -> list[str]:
    """All fields of the configuration, dotted."""
    from gems_jax.training.config import Config
    from gems_jax.training.workdir import plain

    def dotted(values: Any, prefix: str = "") -> list[str]:
        if not isinstance(values, dict):
            return []
        return [prefix + name for name in values] + [
            deeper for name, value in values.items() for deeper in dotted(value, f"{prefix}{name}.")
        ]

    return dotted(plain(Config()))


def parse(argv: list[str]) -> tuple[Callable[[Any], int], Any]:
    """The command's function and its options.

    Raises:
      ValueError: an unknown option or field (with the nearest valid one), a value of the wrong type.
    """
    from jsonargparse import ActionConfigFile, ArgumentParser

    from gems_jax.training.config import Config

    about_all = "Gradient multi-subspace tuning for search and recommendation."
    parser = ArgumentParser(prog="gems-jax", description=about_all, exit_on_error=False, allow_abbrev=False)
    commands = parser.add_subcommands(required=True, dest="command")
    for name, about in _COMMANDS.items():
        sub = ArgumentParser(description=about, exit_on_error=False, allow_abbrev=False)
        sub.add_argument("--config", action=ActionConfigFile, help="YAML file with any of the fields below")
        if name in ("demo", "train", *_ON_A_RUN):
            default = "runs/demo/gems" if name == "demo" else None
            sub.add_argument("--workdir", type=str, required=default is None, default=default, help="of the run")
        if name in ("pretrain", "export"):
            help_text = "folder to write; default: model.path" if name == "pretrain" else "folder to write"
            sub.add_argument("--out", type=str, required=name == "export", default=None, help=help_text)
        if name in ("recommend", "search"):
            sub.add_argument("--user", type=str, required=True, help="as the dataset names them")
            sub.add_argument("--k", type=int, default=10, help="number of items")
        if name == "search":
            sub.add_argument("query", type=str, help="what the user searches for")
        if name == "prepare":
            help_text = "also the base model and the null space, where they are missing"
            sub.add_argument("--all", action="store_true", help=help_text)
        if name == "train":
            sub.add_argument("--distributed", type=bool, default=False, help="form a cluster from the environment")
        if name == "compare":
            from gems_jax.study.command import add_options

            add_options(sub)
        if name in argv[:1]:  # of the others it would only take time
            sub.add_class_arguments(Config, None)
        commands.add_subcommand(name, sub, help=about)
    parsed = parser.parse_args(argv)
    options = parsed[parsed.command]
    if parsed.command in _ON_A_RUN and not options.config:
        # Without a configuration, the one the run was made with; overrides come after it.
        kept = Path(options.workdir) / "config.yaml"
        if kept.is_file():
            parsed = parser.parse_args([argv[0], "--config", str(kept), *argv[1:]])
    made = parser.instantiate(parsed)[parsed.command]
    made.given = argv
    return _RUN[parsed.command], made


def _config(options: Any) -> Any:
    import dataclasses

    from gems_jax.training.config import Config

    return Config(**{f.name: options[f.name] for f in dataclasses.fields(Config)})


def _quiet() -> None:
    """Silences what people can do nothing about."""
    warnings.filterwarnings("ignore", message=".*Sharding info not provided.*")
    import logging

    logging.getLogger("absl").setLevel(logging.ERROR)
    # bm25s sets its own level when it is imported; a filter stays.
    logging.getLogger("bm25s").addFilter(lambda record: record.levelno >= logging.ERROR)


def _prepare(options: Any) -> int:
    from gems_jax.training.stages import ensure_data

    config = _config(options)
    dataset = _material(config)[3] if options.all else ensure_data(config)
    for split, counts in dataset.row_counts().items():
        print(f"  {split}: " + ", ".join(f"{task} {count:,}" for task, count in counts.items()))
    return 0


def _pretrain(options: Any) -> int:
    from gems_jax.training.pretrain import pretrain

    config = _config(options)
    out = Path(options.out or config.model.path)
    if (out / "config.json").is_file():
        print(f"pretrain: there is a model in {out} already; remove the folder to make another")
        return 0
    pretrain(config, out)
    return 0


def _calibrate(options: Any) -> int:
    from gems_jax.training.stages import calibrate, ensure_base

    config = _config(options)
    ensure_base(config)
    calibrate(config)
    return 0


def _material(config: Any) -> tuple[Any, Any, Any, Any]:
    """Base model, material for tuning, null space; made where missing (by one process)."""
    import jax

    from gems_jax.data.remote import exists
    from gems_jax.models import load
    from gems_jax.training.layout import make_mesh
    from gems_jax.training.optimiser import needs_null_space
    from gems_jax.training.stages import assemble, ensure_base, ensure_data, ensure_null_space

    if jax.process_count() > 1:
        missing = [] if exists(config.data.dir) else [config.data.dir]
        folders = [config.model.path, *([config.null_space.path] if needs_null_space(config) else [])]
        missing += [folder for folder in folders if not Path(folder).is_dir()]
        if missing:
            raise FileNotFoundError(
                f"{', '.join(missing)} must exist before several processes train: run gems-jax prepare --all with the "
                "same configuration once"
            )
    dataset = ensure_data(config)
    mesh = None
    if config.mesh.fsdp * config.mesh.tensor > 1:
        # One axis over all devices that share the parameters: each then holds its part of every large leaf.
        devices = make_mesh(config.mesh).devices.flatten()
        mesh = jax.sharding.Mesh(devices, ("shard",), axis_types=(jax.sharding.AxisType.Auto,))
    base, tokenizer = load(ensure_base(config), config.model.dtype, mesh)
    null_space = ensure_null_space(config, base, tokenizer) if needs_null_space(config) else None
    return base, assemble(config, dataset, (base, tokenizer)), null_space, dataset


def _train(options: Any) -> int:
    from gems_jax.training.cluster import join

    join(options.distributed)
    _quiet()
    from gems_jax.staging import as_path
    from gems_jax.training.tune import Stopped, tune
    from gems_jax.training.workdir import check_config

    config, workdir = _config(options), as_path(options.workdir)
    check_config(config, workdir)
    _, material, null_space, _ = _material(config)
    try:
        tune(config, material, null_space, workdir)
    except Stopped as stop:
        print(f"gems-jax: {stop}", file=sys.stderr)
        return stop.code
    return 0


def _check_tuned(workdir: Path) -> None:
    """Before anything is loaded or made."""
    if not (workdir / "config.yaml").is_file():
        raise FileNotFoundError(f"{workdir} is no work directory (no config.yaml); run gems-jax train first")
    if not any(path.name.isdigit() for path in workdir.glob("checkpoints/*")):
        raise FileNotFoundError(f"{workdir} holds no checkpoint yet; run gems-jax train until it has saved one")


def _tuned_run(options: Any, check: Callable[[Any, Path], None]) -> tuple[Any, Path]:
    """Configuration and work directory of a run that has been tuned; ``check`` sees whether they belong together."""
    config, workdir = _config(options), Path(options.workdir)
    _check_tuned(workdir)
    check(config, workdir)
    return config, workdir


def _evaluate(options: Any) -> int:
    _quiet()
    from gems_jax.training.evaluate import evaluate, table_of
    from gems_jax.training.tune import load_tuned
    from gems_jax.training.workdir import keep_config

    config, workdir = _tuned_run(options, keep_config)
    base, material, _, _ = _material(config)
    results = evaluate(config, material, base, load_tuned(config, material, workdir), workdir)
    print(table_of(results))
    print(f"evaluate: {workdir / 'eval.json'}\nevaluate: {workdir / 'report.html'}")
    return 0


def _export(options: Any) -> int:
    _quiet()
    from gems_jax.training.export import export
    from gems_jax.training.tune import load_tuned
    from gems_jax.training.workdir import check_config

    config, workdir = _tuned_run(options, check_config)
    _, material, _, _ = _material(config)
    agreement = export(config, material, load_tuned(config, material, workdir), options.out)
    print(f"export: {agreement.alike} of {agreement.tried} prompts tried have the tokens of training in transformers")
    if agreement.other:
        print(f"export: otherwise, for example: {agreement.other}")
    print(f"export: {options.out}")
    return 0


def _find(options: Any) -> int:
    """Both ``recommend`` and, where there is a query, ``search``."""
    _quiet()
    from gems_jax.ranking.interactive import as_lines, top_items
    from gems_jax.training.tune import load_tuned
    from gems_jax.training.workdir import check_config

    config, workdir = _tuned_run(options, check_config)
    _, material, _, dataset = _material(config)
    query = options.get("query")
    task = "rec" if query is None else "src"
    if task not in config.items.prompts:
        raise ValueError(f"this run has no task {task!r} (items.prompts has {', '.join(config.items.prompts)})")
    found = top_items(
        load_tuned(config, material, workdir),
        material.tokenizer,
        dataset,
        material.items,
        config.items.prompts[task],
        config.items.max_length,
        user=options.user,
        query=query,
        k=options.k,
        beams=config.evaluate.beams,
        vocabulary=config.train.loss_vocabulary,
    )
    print(as_lines(found))
    return 0


def _demo(options: Any) -> int:
    _quiet()
    from gems_jax.training.demo import demo

    report = demo(_config(options), Path(options.workdir))
    print(f"report: {report.resolve()}")
    return 0


def _compare(options: Any) -> int:
    _quiet()
    from gems_jax.study.command import run

    return run(options, _config(options))


_RUN: dict[str, Callable[[Any], int]] = {
    "demo": _demo,
    "prepare": _prepare,
    "pretrain": _pretrain,
    "calibrate": _calibrate,
    "train": _train,
    "evaluate": _evaluate,
    "export": _export,
    "recommend": _find,
    "search": _find,
    "compare": _compare,
}


if __name__ == "__main__":
    sys.exit(main())
