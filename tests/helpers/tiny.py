"""Runs small enough for tests: settings, raw data, the command line in this process."""

import contextlib
import io
import json
import re
from pathlib import Path
from typing import NamedTuple

from gems_jax import cli

MODEL = {
    "text.input_length": 48,
    "text.eval_batches": 2,
    "text.eval_batch_size": 8,
    "pretrain.vocab_size": 600,
    "pretrain.d_model": 32,
    "pretrain.d_kv": 8,
    "pretrain.d_ff": 32,
    "pretrain.num_layers": 1,
    "pretrain.num_decoder_layers": 1,
    "pretrain.steps": 4,
    "pretrain.batch_size": 8,
    "null_space.batches": 4,
    "null_space.batch_size": 16,
}
TUNING = {
    "data.num_users": 60,
    "items.max_length": 32,
    "items.length_buckets": "[]",
    "gems.refresh_every": 3,
    "train.steps": 8,
    "train.batch_size": 8,
    "train.log_every": 1,
    "train.checkpoint_every": 0,
    "train.eval_every": 0,
    "evaluate.rows": 16,
    "evaluate.batch_size": 16,
    "evaluate.samples": 5,
    "evaluate.continuations": 0,
    "evaluate.facts": False,
}


def options(root, **others):
    """Command-line options of a tiny run whose parts lie in ``root``; ``train__steps=3`` overrides one."""
    places = {"data.dir": root / "data", "model.path": root / "base", "null_space.path": root / "null_space"}
    changed = {name.replace("__", "."): value for name, value in others.items()}
    values = places | MODEL | TUNING | changed
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def gems_jax(*argv):
    """Runs a command in this process; returns its exit code."""
    return cli.main([str(word) for word in argv])


def read(*argv):
    """The configuration of a command line."""
    from gems_jax.arguments import config_of  # tests of the core need none of what it imports

    return config_of(cli.parse([str(word) for word in argv])[1])


class Made(NamedTuple):
    """A folder with what commands made in it, and what they said."""

    root: Path
    said: dict[str, str]


def say(said, name, *argv):
    """Runs a command that must succeed, and notes what it prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = gems_jax(name, *argv)
    said[name] = out.getvalue()
    assert code == 0, f"gems-jax {name}: {said[name]}"


def fails(capsys, *argv):
    """The message of a command that must be refused."""
    capsys.readouterr()
    assert gems_jax(*argv) == cli.EXIT_BAD_INPUT
    said = capsys.readouterr().err
    lines = [line for line in said.splitlines() if line.startswith("gems-jax: error: ")]
    assert len(lines) == 1, said
    assert "Traceback" not in said
    return said


def documented_program(folder):
    """What the programs in an exported folder's README.md define; each goes on behind those before it."""
    defined = {}
    for program in re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL):
        exec(compile(program, "README.md", "exec"), defined)  # noqa: S102
    return defined


def metrics(workdir):
    """The lines of ``metrics.jsonl``."""
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def write_raw(folder, queries=True):
    """Raw files of ten items and four users."""
    folder.mkdir()
    items = {str(n): {"title": f"tool {n}", "brand": "Acme"} for n in range(10)}
    users = {f"u{n}": [n, n + 1, n + 2, n + 3] for n in range(4)}
    lines = ["item\tquery_hem\tquery_noroot", *(f"{n}\troot tool {n % 3}\ttool {n % 3}" for n in range(10))]
    (folder / "Scientific.item.json").write_text(json.dumps(items, indent=1))
    (folder / "Scientific.inter.json").write_text(json.dumps(users))
    (folder / "queries.tsv").write_text("\n".join(lines if queries else lines[:1]) + "\n")
    return folder


def everything_in(folder):
    """Relative paths of all files and folders."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
