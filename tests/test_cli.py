"""What the command line says about bad input: one message, exit code 2, nothing half-written."""

import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny import everything_in, fails, gems_jax, options, write_raw

from gems_jax import cli
from gems_jax.arguments import Command, config_of
from gems_jax.commands import COMMANDS
from gems_jax.config.run import Config
from gems_jax.failures import explained
from gems_jax.null_space.space import NullSpace


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["prepare", "--train.stepz", "3"], "did you mean 'train.steps'?"),
        (["prepare", "--trian.steps=3"], "did you mean 'train.steps'?"),
        (["prepare", "--confg", "c.yaml"], "did you mean 'config'?"),
        (["doctor", "--workdir", "w"], "unrecognized arguments: --workdir w; --help lists the fields"),
        (["prepare", "--train.steps", "many"], "many"),
        (["prepare", "--gems.side", "left"], "left"),
        (["train", "--workdir", "w", "--train.schedule", "cosin"], "did you mean 'cosine'?"),
        (["train", "--workdir", "w", "--data.preprocessing.coree", "3"], "did you mean 'data.preprocessing.core'?"),
        (["train", "--workdir", "w", "--train.steps", "1.5"], "train.steps"),
        (["prepare", "--data.name", "books"], "books"),
        (["prepare", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["tune"], "there is no command 'tune'"),
        ([], "a command is needed: demo, prepare, "),
        (["search", "red", "lamp", "--workdir", "w", "--user", "u"], "put it in quotation marks ('lamp' is left over)"),
        (["search", "--lamp", "--workdir", "w", "--user", "u"], "that begins with - stands at the end, behind --"),
        (["compare", "--results", "gs://w/s.json", "--page", "p.md"], "--results gs://w/s.json is on an object store"),
        (["compare", "--workdir", "gs://w/study"], "--workdir gs://w/study is on an object store: give a folder"),
        (["train", "--workdir", "w", "--train.steps.x", "3"], "train.steps has no field 'x'"),
        (["evaluate", "--workdir", "w", "--evaluate.batch_size", "9" * 12], "number from 1 to 2147483647, got 99"),
        (["prepare", "--model.path", "gs://a/base"], "model.path gs://a/base is no path on this machine"),
        (["pretrain", "--out", "gs://a/base"], "--out gs://a/base is on an object store"),
        (["pretrain", "--out", "/dev/null/base"], "/dev/null/base cannot be written (/dev/null: Not a directory)"),
        (["train", "--workdir", "/dev/null"], "--workdir /dev/null cannot be written"),
        (["calibrate", "--null_space.path", "/dev/null"], "null_space.path /dev/null cannot be written"),
        (["train"], "train needs --workdir"),
        (["train", "--workdir", "run[1]"], "run[1] has a bracket in its name, and checkpoints written there could not"),
        (["export", "--workdir", "w"], "export needs --out"),
        (["recommend", "--workdir", "w"], "recommend needs --user"),
        (["search", "lamp", "--user", "u"], "search needs --workdir"),
        (
            ["search", "lamp", "--workdir", "w"],
            "search needs --user U, or --history A,B of someone whom the dataset does",
        ),
        (["recommend", "--workdir", "w", "--user", "u", "--history", "a"], "give either user or history, not both"),
        (["recommend", "--workdir", "w", "--history", "[a"], "--history [a is no JSON list"),
        (["search", "--workdir", "w", "--user", "u"], "search needs a query"),
        (["recommend", "--workdir", "w", "--user", "u", "--k", "0"], "--k must be at least 1, got 0"),
        (["evaluate", "--workdir", "w"], "w is no work directory (no config.yaml); run gems-jax train first"),
        (["export", "--workdir", "w", "--out", "o"], "w is no work directory"),
        (["pretrain", "--out", "o", "--text.train", "no.txt"], "general text no.txt does not exist"),
        (["pretrain", "--out", "o", "--pretrain.tokenizer", "nowhere"], "nowhere is not a folder"),
        (["calibrate", "--model.path", "nowhere", "--model.from_text", "false"], "nowhere holds no model"),
        (["prepare", "--data.name", "amazon_scientific"], "needs data.path"),
        (["prepare", "--data.name", "amazon_scientific", "--data.path", "no"], "no is not a folder"),
    ],
)
def test_a_command_that_cannot_be_is_refused(argv, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert message in fails(capsys, *argv)
    assert everything_in(tmp_path) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train:\n  stepz: 3\n", "did you mean 'train.steps'?"),
        ("training:\n  steps: 3\n", "training"),
        ("train:\n  steps: often\n", "often"),
        ("data: {files: {interactions: [a.csv, b.csv]}}\n", "others are made one file first"),
        ("train: [1, 2\n", "file.yaml, line 2: while parsing a flow sequence"),
    ],
)
def test_a_bad_configuration_file_is_refused(text, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("file.yaml").write_text(text)
    assert message in fails(capsys, "prepare", "--config", "file.yaml")
    assert everything_in(tmp_path) == ["file.yaml"]


def test_the_whole_configuration_is_printed_and_reads_back(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        gems_jax("train", "--workdir", "w", "--train.steps", 7, "--mesh.fsdp", 2, "--print_config")
    printed = capsys.readouterr().out
    (tmp_path / "again.yaml").write_text(printed)
    read = config_of(cli.parse(["train", "--config", "again.yaml", "--workdir", "w"])[1])
    assert (read.train.steps, read.mesh.fsdp) == (7, 2)
    assert dataclasses.replace(read, train=Config().train, mesh=Config().mesh) == Config()


@pytest.mark.parametrize(
    ("command", "flag"), [("prepare", "--all"), ("train", "--dry-run"), ("compare", "--summarise")]
)
def test_a_configuration_printed_with_an_option_without_a_value_reads_back(
    command, flag, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    workdir = [] if command == "prepare" else ["--workdir", "w"]
    with pytest.raises(SystemExit):
        gems_jax(command, *workdir, flag, "--print_config")
    (tmp_path / "again.yaml").write_text(capsys.readouterr().out)
    _, options = cli.parse([command, "--config", "again.yaml", *workdir])
    assert options[flag[2:].replace("-", "_")] is True


def prepare_raw(raw, *argv):
    return ["prepare", "--data.name", "amazon_scientific", "--data.path", raw, "--data.dir", raw.parent / "made",
            "--data.num_negatives", 2, *argv]  # fmt: skip


def test_bad_rows_are_counted_skipped_and_listed_with_the_reason(tmp_path, capsys):
    raw = write_raw(tmp_path / "raw")
    path = raw / "Scientific.item.json"
    path.write_text(path.read_text().replace('"title": "tool 4"', '"title": tool 4').replace('"tool 9"', '" "'))
    users = {f"u{n}": [n, n + 1, n + 2, n + 3] for n in range(4)}
    (raw / "Scientific.inter.json").write_text(json.dumps(users | {"u9": [0, 1, 2, 777]}))
    assert gems_jax(*prepare_raw(raw, "--data.max_bad_fraction", 0.5)) == 0
    said = capsys.readouterr().out
    assert "left out 1 (item: it is malformed JSON)" in said
    assert "left out 1 (item: it has no title)" in said
    assert "(event: its item is not in the catalogue)" in said
    listed = [json.loads(line) for line in (tmp_path / "made" / "quarantine.jsonl").read_text().splitlines()]
    assert {"user u9"} <= {row["id"] for row in listed if row.get("detail") == "item 777"}


def test_more_bad_rows_than_allowed_stop_preparation(tmp_path, capsys):
    raw = write_raw(tmp_path / "raw")
    path = raw / "Scientific.item.json"
    path.write_text(path.read_text().replace('"tool 9"', '""'))
    assert "1 of 10 rows of kind 'item'" in fails(capsys, *prepare_raw(raw))
    kept = ["made.quarantine.jsonl", "raw", *(f"raw/{name}" for name in sorted(x.name for x in raw.iterdir()))]
    assert everything_in(tmp_path) == kept


def test_a_missing_raw_file_and_an_empty_split_are_named(tmp_path, capsys):
    raw = write_raw(tmp_path / "raw", queries=False)
    assert "src" in fails(capsys, *prepare_raw(raw))
    (raw / "queries.tsv").unlink()
    assert "queries.tsv" in fails(capsys, *prepare_raw(raw))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw"]


@pytest.fixture
def others(prepared, tmp_path):
    """A base model with other weights than those the null space is for."""
    base = tmp_path / "base"
    shutil.copytree(prepared.root / "base", base)
    weights = load_file(base / "model.safetensors")
    save_file({name: value + np.float32(1e-3) for name, value in weights.items()}, base / "model.safetensors")
    (base / "checksums.json").unlink()  # changed on purpose
    return base


def test_a_null_space_for_other_weights_is_refused(prepared, others, tmp_path, capsys):
    run = tmp_path / "run"
    said = fails(capsys, "train", *options(prepared.root, model__path=others), "--workdir", run)
    assert "null space" in said
    assert "weights" in said
    assert not run.exists()


def test_a_null_space_of_other_settings_is_refused(prepared, tmp_path, capsys):
    run = tmp_path / "run"
    said = fails(capsys, "train", *options(prepared.root, null_space__energy=0.5), "--workdir", run)
    assert "calibrate again" in said
    assert not run.exists()


def test_what_a_run_on_many_devices_needs_is_prepared_on_one_machine(prepared, tmp_path, capsys):
    many = [*options(prepared.root), "--mesh.fsdp", 16, "--mesh.tensor", 3]
    assert gems_jax("prepare", "--all", *many) == 0
    assert "train: rec" in capsys.readouterr().out
    assert "mesh.fsdp=16" in fails(capsys, "train", *many, "--workdir", tmp_path / "run")


def test_a_cut_off_base_model_is_refused(prepared, others, tmp_path, capsys):
    path = others / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    run = tmp_path / "run"
    assert str(others) in fails(capsys, "train", *options(prepared.root, model__path=others), "--workdir", run)
    assert not run.exists()


def test_ranks_above_a_kernels_size_are_capped_and_shown(prepared, tmp_path, capsys):
    settings = options(prepared.root, gems__rank=500, gems__task_rank=4, gems__null_space=False, train__steps=1)
    assert gems_jax("train", *settings, "--workdir", tmp_path / "run") == 0
    row = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("encoder/block/attention/q/kernel"))
    assert "32 + 2 x 4 (capped from 500, 4)" in row


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"items__max_length": 3}, "max_length 3"),
        ({"items__prompts": '{"rec": "history: {history}"}'}, "no template for task 'src'"),
        ({"items__prompts": '{"rec": "{histroy}", "src": "{query}"}'}, "unknown field {histroy}"),
    ],
)
def test_settings_that_cannot_be_leave_no_work_directory(changed, message, prepared, tmp_path, capsys):
    run = tmp_path / "run"
    assert message in fails(capsys, "train", *options(prepared.root, **changed), "--workdir", run)
    assert not run.exists()


def test_too_little_memory_ends_a_command_with_a_message(monkeypatch, capsys):
    def too_large(argv):
        raise MemoryError("Unable to allocate 149. GiB for an array")

    monkeypatch.setattr(cli, "parse", too_large)
    said = fails(capsys, "evaluate", "--workdir", "w")
    assert "out of memory (Unable to allocate 149. GiB for an array)" in said
    assert "evaluate.batch_size" in said


def test_a_core_installation_says_what_the_command_needs(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "gems_jax.arguments", raising=False)
    monkeypatch.setitem(sys.modules, "jsonargparse", None)
    assert 'the package jsonargparse, which the core is installed without: pip install "gems-jax[train]"' in fails(
        capsys, "--help"
    )


def test_a_device_without_memory_ends_a_command_with_a_message(monkeypatch, capsys):
    def exhausted(argv):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.")

    monkeypatch.setattr(cli, "parse", exhausted)
    said = fails(capsys, "train", "--workdir", "w")
    assert all(name in said for name in ("out of memory", "train.accumulate", "train.batch_size", "train.loss_chunk"))


def test_a_platform_that_is_not_here_is_one_message():
    program = "import jax; from gems_jax import cli; cli.parse = lambda argv: jax.devices(); exit(cli.main(['x']))"
    # Of one without its plugin JAX says so by an assertion alone; of an unknown one by its name.
    for name in ("rocm" if importlib.util.find_spec("jax_cuda13_plugin") else "cuda", "nosuch"):
        done = subprocess.run(
            [sys.executable, "-c", program], env=os.environ | {"JAX_PLATFORMS": name}, capture_output=True, text=True,
            timeout=60,
        )  # fmt: skip
        assert done.returncode == cli.EXIT_BAD_INPUT
        assert f"JAX has no devices of the platform '{name}' here" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_full_disk_is_not_taken_for_a_fault_of_the_program_or_for_too_little_memory(tmp_path):
    said = run_with_files_of_at_most(1000, f"save_file({{'a': np.zeros(1000)}}, {str(tmp_path / 'a.safetensors')!r})")
    assert re.match(r"no room to write \(.*File too large", said)
    full = ValueError("RESOURCE_EXHAUSTED: Error writing local file: No space left on device")
    assert explained(full, "train").startswith("no room to write (RESOURCE_EXHAUSTED: ")
    ours = OSError(f"the checkpoint of step 2 could not be written ({full}): make room and run again")
    assert explained(ours, "train") == str(ours)


def run_with_files_of_at_most(size, program):
    """What a command says of the error that a program ends with which may write files of so many bytes."""
    whole = f"""
import resource, signal
import numpy as np
from safetensors.numpy import save_file
from gems_jax.failures import explained
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))
try:
    {program}
except Exception as error:
    print(explained(error, "export"))
"""
    return subprocess.run([sys.executable, "-c", whole], capture_output=True, text=True, check=True).stdout


def test_the_version_is_told(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"gems-jax {importlib.metadata.version('gems-jax')}\n"


def test_queries_may_begin_with_a_dash_and_paths_with_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    options = cli.parse(["search", "--workdir=~/run", "--user", "u", "--data.dir=~/data", "--", "--lamp"])[1]
    assert (options.query, options.workdir) == ("--lamp", str(tmp_path / "run"))
    assert config_of(options).data.dir == str(tmp_path / "data")


def test_help_lists_every_command():
    done = subprocess.run([sys.executable, "-m", "gems_jax.cli", "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert all(name in done.stdout for name in COMMANDS)


def test_errors_reach_the_shell_as_one_line_and_code_2(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "gems_jax.cli", "train", "--workdir", "w", "--train.step", "3"],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "did you mean 'train.steps'?" in done.stderr
    assert everything_in(tmp_path) == []


def test_calibration_is_capped_and_kept_within_memory_by_the_configuration(prepared, tmp_path, capsys):
    folder = tmp_path / "null_space"
    capped = options(prepared.root, null_space__path=folder, null_space__max_directions=3)
    assert "memory_limit" in fails(capsys, "calibrate", *capped, "--null_space.memory_limit", 1)
    assert not folder.exists()
    assert gems_jax("calibrate", *capped, "--null_space.memory_limit", 40_000) == 0
    null_space = NullSpace.load(folder)
    assert {int(np.max(factor.kept)) for factor in null_space.factors.values()} == {3}
    other = options(prepared.root, null_space__path=folder)
    assert "max_directions" in fails(capsys, "train", *other, "--workdir", tmp_path / "run")


def test_a_command_from_outside_is_one_entry(monkeypatch, capsys):
    greet = Command(
        "say hello",
        lambda options: print(f"hello {options.whom}, {options.times} times") or 0,
        lambda options: (options.word("whom", "who is greeted"), options.add("--times", int, "how often", default=1)),
        config="none",
        words={"whom": "somebody to greet"},
    )
    monkeypatch.setitem(COMMANDS, "greet", greet)
    assert cli.main(["greet", "you", "--times", "3"]) == 0
    assert capsys.readouterr().out == "hello you, 3 times\n"
    assert cli.main(["greet"]) == cli.EXIT_BAD_INPUT
    assert "greet needs somebody to greet" in capsys.readouterr().err
    assert cli.main(["greet", "you", "--time", "3"]) == cli.EXIT_BAD_INPUT
    assert "did you mean 'times'?" in capsys.readouterr().err
