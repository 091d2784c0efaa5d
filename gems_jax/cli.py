"""The command ``gems-jax``."""

import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gems_jax.failures import explained
from gems_jax.version import __version__

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
EXIT_STOPPED = 143

COMMANDS = {
    "demo": "run the whole path on a tiny model and write a report",
    "prepare": "turn raw interactions into a validated, split dataset; set bad rows aside and count them",
    "pretrain": "train a small base model on plain text",
    "calibrate": "estimate the base model's null space from general text",
    "identify": "make identifiers of several tokens for the items, from their texts",
    "train": "tune on all tasks; first make missing inputs; resume a run that was stopped",
    "evaluate": "rank both tasks, measure forgetting, write eval.json and report.html",
    "items": "add items to a tuned run's catalogue, remove some, undo that, list what was done; no training",
    "export": "write the tuned model as a Hugging Face folder",
    "recommend": "list the items that a tuned model recommends to a user",
    "search": "list the items that a tuned model finds for a user's query",
    "predict": "answer a file of requests; go on where a killed run was",
    "serve": "answer requests over HTTP until SIGTERM",
    "compare": "tune by several methods with the same effort for each; resume; write study.json",
    "init": "write a configuration that fits a model, your data and this machine",
    "doctor": "say what is installed, which devices there are and whether a run fits on them",
    "completion": "print a shell's completion of this command",
}


def main(argv: list[str] | None = None) -> int:
    """Runs a command and returns its exit code: 0 done, 2 bad input, 130 or 143 stopped by Ctrl-C or SIGTERM."""
    argv = sys.argv[1:] if argv is None else argv
    if "OPENBLAS_NUM_THREADS" not in os.environ:
        # LAPACK's threads fight XLA's on CPU (an SVD of 256 x 256 takes 100 times as long), and the variable is
        # read when the library is loaded: start again with it.
        os.environ["OPENBLAS_NUM_THREADS"] = "1"
        os.execv(sys.executable, [sys.executable, "-m", "gems_jax.cli", *argv])
    try:
        if argv == ["--version"]:
            print(f"gems-jax {__version__}")
            return 0
        command, options = parse(argv)
        return command(options)
    except Exception as error:
        said = explained(error, argv[0] if argv else "")
        if said is None or os.environ.get("GEMS_JAX_TRACEBACK"):
            raise
        print(f"gems-jax: error: {said}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("gems-jax: left", file=sys.stderr)
        return EXIT_INTERRUPTED


def parse(argv: list[str]) -> tuple[Callable[[Any], int], Any]:
    """The command's function and its options.

    Raises:
      ValueError: an unknown option or field (with the nearest valid one), a value of the wrong type.
    """
    from gems_jax.arguments import parse_options

    for word in argv:
        _check_utf8(word)
    command, options = parse_options(argv, COMMANDS)
    return _RUN[command], options


def _check_utf8(word: str) -> None:
    """A word of the command line must be text: paths and queries go into files and messages."""
    from gems_jax.staging import escaped

    shown = escaped(word)
    if shown != word:
        raise ValueError(f"{shown!r} on the command line is no UTF-8: write it anew, or rename the folder")


def _config(options: Any) -> Any:
    from gems_jax.arguments import config_of

    return config_of(options)


def _quiet() -> None:
    """Silences what people can do nothing about."""
    warnings.filterwarnings("ignore", message=".*Sharding info not provided.*")
    import logging

    logging.getLogger("absl").setLevel(logging.ERROR)
    # bm25s sets its own level when it is imported; a filter stays.
    logging.getLogger("bm25s").addFilter(lambda record: record.levelno >= logging.ERROR)


def _prepare(options: Any) -> int:
    from gems_jax.data.text.unknown_tokens import unknown_lines
    from gems_jax.training.run_assets import run_assets
    from gems_jax.training.stages import ensure_data
    from gems_jax.training.unknown_text import unknown_text

    config = _config(options)
    if options.all:
        assets = run_assets(config).assets
        dataset = assets.dataset
        for line in unknown_lines(unknown_text(config, dataset, assets.tokenizer)):
            print(f"data: {line}")
    else:
        dataset = ensure_data(config)
    for split, counts in dataset.row_counts().items():
        print(f"  {split}: " + ", ".join(f"{task} {count:,}" for task, count in counts.items()))
    return 0


def _pretrain(options: Any) -> int:
    from gems_jax.staging import check_writable
    from gems_jax.training.pretrain import pretrain

    config = _config(options)
    path = options.out or config.model.path
    check_writable(path, "--out" if options.out else "model.path")
    out = Path(path)
    if (out / "config.json").is_file():
        print(f"pretrain: there is a model in {out} already; remove the folder to make another")
        return 0
    if out.is_dir() and any(out.iterdir()):
        raise ValueError(f"{out} holds files but no model (config.json): it would be replaced; give another folder")
    pretrain(config, out)
    return 0


def _calibrate(options: Any) -> int:
    from gems_jax.staging import check_writable
    from gems_jax.training.stages import calibrate, ensure_base

    config = _config(options)
    check_writable(config.null_space.path, "null_space.path")
    ensure_base(config)
    calibrate(config)
    return 0


def _identify(options: Any) -> int:
    from gems_jax.models import load
    from gems_jax.staging import check_writable
    from gems_jax.training.identify import check_made, identify
    from gems_jax.training.stages import ensure_base, ensure_data

    config = _config(options)
    check_made(config)
    check_writable(config.items.path, "items.path")
    dataset = ensure_data(config)
    identify(config, dataset, *load(ensure_base(config), config.model.dtype))
    return 0


def _train(options: Any) -> int:
    if options.dry_run:
        return _dry_run(options)
    from gems_jax.training.distributed.cluster import failing_together, join_cluster

    join_cluster(options.distributed)
    _quiet()
    from gems_jax.staging import as_path, check_workdir, check_writable, is_remote
    from gems_jax.training.run_assets import run_assets
    from gems_jax.training.tune import Stopped, tune
    from gems_jax.training.workdir.edits import read_edits
    from gems_jax.training.workdir.files import check_config, check_processes

    config, workdir = _config(options), as_path(options.workdir)
    check_workdir(workdir, "--workdir")
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
    _quiet()
    from gems_jax.staging import as_path, check_workdir
    from gems_jax.training.dry_run import dry_run
    from gems_jax.training.workdir.files import check_config

    config, workdir = _config(options), as_path(options.workdir)
    check_workdir(workdir, "--workdir")
    check_config(config, workdir)
    print(dry_run(config, workdir))
    return 0


def _tuned_run(options: Any, check: Callable[[Any, Path], None], model: bool = True) -> tuple[Any, Path]:
    """Configuration and work directory of a run that has been tuned; ``check`` sees whether they belong together.

    The work directory is a folder on this machine: of one on an object store a copy, with the ``model`` if that is
    needed.
    """
    from gems_jax.training.path_checks import check_run_paths, check_tuned
    from gems_jax.training.workdir.copies import opened

    check_tuned(options.workdir)
    config = _config(options)
    workdir = opened(options.workdir, config.evaluate.checkpoint if model else None)
    check(config, workdir)
    check_run_paths(config, workdir)
    return config, workdir


def _evaluate(options: Any) -> int:
    _quiet()
    from gems_jax.staging import as_path, check_writable
    from gems_jax.training.evaluate_run import evaluate_run, table_of
    from gems_jax.training.tuned import load_run
    from gems_jax.training.workdir.copies import send_evaluation
    from gems_jax.training.workdir.files import check_config, keep_config

    config, workdir = _tuned_run(options, check_config)
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


def _export(options: Any) -> int:
    _quiet()
    from gems_jax.training.export import export
    from gems_jax.training.export_folder import check_folder
    from gems_jax.training.tuned import load_run
    from gems_jax.training.workdir.files import check_config

    config, workdir = _tuned_run(options, check_config)
    inputs = {"the dataset (data.dir)": config.data.dir, "the null space (null_space.path)": config.null_space.path}
    inputs |= {"the identifiers (items.path)": config.items.path}
    check_folder(options.out, options.workdir, config.model.path, inputs)
    run = load_run(config, workdir)
    agreement = export(config, run.assets, run.model, options.out, options.workdir, options.dtype, run.edits.notice())
    print(f"export: {agreement.alike} of {agreement.tried} prompts tried have the tokens of training in transformers")
    if agreement.other:
        print(f"export: otherwise, for example: {agreement.other}")
    print(f"export: {options.out}")
    return 0


def _items(options: Any) -> int:
    _quiet()
    from gems_jax.staging import as_path
    from gems_jax.training.edit_items import add_items, edit_lines, ids_of, lines_of, remove_items, undo_edit
    from gems_jax.training.tuned import edits_of
    from gems_jax.training.workdir.files import check_config

    action, names = options.action, options.names
    if action not in ("add", "remove", "undo", "list"):
        raise ValueError(f"items does {action!r}? It has add FILE, remove IDS, undo and list")
    if action == "add" and len(names) != 1:
        raise ValueError("items add needs one FILE")
    if action in ("undo", "list") and names:
        raise ValueError(f"items {action} takes no {names[0]!r}")
    of_add = {name: options[name] for name in ("identifiers", "columns", "max_bad_fraction")}
    wrong = [name for name in of_add if of_add[name] is not None and action != "add"]
    wrong += ["ids"] if options.ids is not None and action != "remove" else []
    if wrong:
        raise ValueError(f"items {action} takes no --{wrong[0]}")
    config, workdir = _tuned_run(options, check_config, model=False)
    if action == "list":
        print("\n".join(lines_of(edits_of(workdir), as_path(options.workdir))))
        return 0
    if action == "add":
        done = add_items(config, options.workdir, names[0], **of_add)
    elif action == "remove":
        done = remove_items(options.workdir, ids_of(names, options.ids))
    else:
        done = undo_edit(options.workdir)
    print("\n".join(edit_lines(done, undone=action == "undo")))
    return 0


def _find(options: Any) -> int:
    """Both ``recommend`` and, where there is a query, ``search``."""
    _quiet()
    from gems_jax.serving.answers import as_lines
    from gems_jax.serving.recommender import load_engine
    from gems_jax.serving.requests import Request
    from gems_jax.training.workdir.files import check_config

    query = options.get("query")
    if options.k < 1:
        raise ValueError(f"--k must be at least 1, got {options.k}")
    request = Request("rec" if query is None else "src", options.user, query=query, k=options.k)
    engine = load_engine(*_tuned_run(options, check_config), batch_size=1)
    (answer,) = engine.rank([request])
    for note in answer.notes:
        print(f"search: {note}", file=sys.stderr)
    print(as_lines(answer.items))
    return 0


def _predict(options: Any) -> int:
    _quiet()
    from gems_jax.serving.predict import check_paths, predict
    from gems_jax.serving.recommender import load_engine
    from gems_jax.staging import as_path
    from gems_jax.training.workdir.files import check_config
    from gems_jax.training.workdir.fingerprint import model_fingerprint

    requests, out = as_path(options.requests), as_path(options.out)
    check_paths(requests, out)
    config, workdir = _tuned_run(options, check_config)
    engine = load_engine(config, workdir)
    done = predict(engine, requests, out, model_fingerprint(config, workdir), progress=True)
    print(f"predict: {done.answered:,} requests answered in {out}")
    if done.left_out:
        why = ", ".join(f"{count:,} for {what}" for what, count in done.left_out.most_common())
        print(f"predict: {done.left_out.total():,} rows left out ({why}), with reasons in {out}.quarantine.jsonl")
    return 0


def _serve(options: Any) -> int:
    _quiet()
    import signal

    from gems_jax.serving.http.limits import Limits
    from gems_jax.serving.http.server import Server, read_token
    from gems_jax.serving.recommender import load_engine
    from gems_jax.training.workdir.files import check_config

    token = read_token(options.token_file)
    config, _ = _tuned_run(options, check_config)
    limits = Limits(
        batch_size=options.batch_size,
        max_wait=options.max_wait,
        max_queue=options.max_queue,
        timeout=options.timeout,
        max_k=options.max_k or config.evaluate.beams,
    )

    def load() -> Any:
        # Of the history of someone unknown, and what is denied.
        listed = 2 * limits.max_items
        return load_engine(
            config,
            options.workdir,
            batch_size=limits.batch_size,
            beams=limits.max_k,
            listed=listed,
            base=options.base_model,
        )

    stopped: list[int] = []
    # What uses signals in between leaves this one behind: an end that was asked for has an exit code of its own.
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    server = Server(load, limits, options.host, options.port, token)
    print(f"serve: {server.url}", flush=True)
    server.run()
    return EXIT_STOPPED if stopped else 0


def _demo(options: Any) -> int:
    _quiet()
    from gems_jax.staging import check_workdir, check_writable
    from gems_jax.training.demo import demo

    check_workdir(options.workdir, "--workdir")
    check_writable(options.workdir, "--workdir")
    report = demo(_config(options), Path(options.workdir))
    print(f"report: {report.resolve()}")
    return 0


def _compare(options: Any) -> int:
    _quiet()
    from gems_jax.study.command import run

    return run(options, _config(options))


def _init(options: Any) -> int:
    _quiet()
    from gems_jax.staging import check_writable, write_text
    from gems_jax.training.proposal.data import find_data
    from gems_jax.training.proposal.proposal import as_yaml, propose

    out = Path(options.out)
    if out.exists():
        raise ValueError(f"--out {out} exists already: remove it, or name another")
    if (options.text is None) != (options.heldout is None):
        raise ValueError("--text and --heldout go together: text to protect, and other text to measure forgetting on")
    check_writable(out.parent, "--out")
    text = None if options.text is None else (options.text, options.heldout)
    found = find_data(options.data, options["items"], options.columns or {})
    proposal = propose(options.model, found, text, f"runs/{out.stem}", keep=options.keep)
    write_text(out, as_yaml(proposal, str(out)))
    print("\n".join([*proposal.notes, f"init: {out}"]))
    return 0


def _doctor(options: Any) -> int:
    from gems_jax.training.doctor import doctor

    if options.num_items is not None and options.num_items < 1:
        raise ValueError(f"--num_items must be at least 1, got {options.num_items}")
    print(doctor(_config(options), options.num_items))
    return 0


def _completion(options: Any) -> int:
    from gems_jax.completion import script

    print(script(options.shell, COMMANDS), end="")
    return 0


_RUN: dict[str, Callable[[Any], int]] = {
    "demo": _demo,
    "prepare": _prepare,
    "pretrain": _pretrain,
    "calibrate": _calibrate,
    "identify": _identify,
    "train": _train,
    "evaluate": _evaluate,
    "items": _items,
    "export": _export,
    "recommend": _find,
    "search": _find,
    "predict": _predict,
    "serve": _serve,
    "compare": _compare,
    "init": _init,
    "doctor": _doctor,
    "completion": _completion,
}


if __name__ == "__main__":
    sys.exit(main())
