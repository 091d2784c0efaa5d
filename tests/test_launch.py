"""Several processes on one machine."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import gems_jax, metrics, options

REPOSITORY = Path(__file__).parents[1]
# The processes compile apart, which takes longest for GEMS; `training/test_cluster` has it in two processes.
CHEAP = {"train__method": "adamw", "train__steps": 5}


def launch(*argv, timeout=300, **variables):
    environment = os.environ | {"PYTHON": sys.executable, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"} | variables
    command = ["bash", str(REPOSITORY / "launch" / "local.sh"), *map(str, argv)]
    return subprocess.run(command, cwd=REPOSITORY, env=environment, text=True, capture_output=True, timeout=timeout)


def losses(workdir):
    return [[line["loss/rec"], line["loss/src"]] for line in metrics(workdir)]


def test_two_processes_tune_as_one_does(prepared, tmp_path):
    """Half a minute, for all that the script starts: preparation, two processes, evaluation."""
    two, one = tmp_path / "two", tmp_path / "one"
    done = launch(2, *options(prepared.root, **CHEAP), "--workdir", two)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"train:.* 5 steps", done.stdout)
    assert (two / "report.html").is_file()
    assert (two / "logs" / "process_1.txt").is_file()

    assert gems_jax("train", *options(prepared.root, **CHEAP), "--workdir", one) == 0
    assert [line["step"] for line in metrics(two)] == [1, 2, 3, 4, 5]
    for pair, single in zip(losses(two), losses(one), strict=True):
        assert pair == pytest.approx(single, rel=2e-5)


@pytest.mark.parametrize("argv", [[], ["two", "--workdir", "w"], ["2"], ["0", "--workdir", "w"]])
def test_a_call_that_makes_no_sense_gets_the_usage(argv):
    done = launch(*argv)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: launch/local.sh N")


def test_bad_input_is_found_before_processes_start(tmp_path):
    done = launch(2, "--workdir", tmp_path / "run", "--train.stepz", "3")
    assert done.returncode == 2
    assert "did you mean 'train.steps'?" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.fixture
def pretended(tmp_path, monkeypatch):
    """An interpreter that only notes commands; ``train`` is what a test wants it to be."""

    def make(train):
        script = tmp_path / "python"
        script.write_text(
            f"""#!/bin/bash
[[ $1 == -c ]] && exec {sys.executable} "$@"
echo "$3 ${{JAX_PROCESS_ID:-alone}} ${{@:4}}" >> {tmp_path}/commands
[[ $3 == train ]] || exit 0
{train}
"""
        )
        script.chmod(0o755)
        return {"PYTHON": str(script)}

    return make


def commands(tmp_path):
    return sorted((tmp_path / "commands").read_text().splitlines())


def test_processes_get_the_options_and_their_numbers(pretended, tmp_path):
    run = tmp_path / "run"
    done = launch(3, "--workdir", run, "--train.steps", 2, **pretended("echo I am $JAX_PROCESS_ID"))
    assert done.returncode == 0, done.stderr
    assert commands(tmp_path) == [
        f"evaluate alone --workdir {run} --train.steps 2",
        "prepare alone --all --train.steps 2",
        *(f"train {i} --workdir {run} --train.steps 2" for i in range(3)),
    ]
    assert done.stdout == "I am 0\n"
    assert [(run / "logs" / f"process_{i}.txt").read_text() for i in (1, 2)] == ["I am 1\n", "I am 2\n"]


def test_the_code_of_a_process_that_fails_is_returned_and_the_others_end(pretended, tmp_path):
    interpreter = pretended(f"[[ $JAX_PROCESS_ID == 1 ]] && exit 7; echo $$ > {tmp_path}/pid; exec sleep 100")
    begin = time.monotonic()
    done = launch(2, "--workdir", tmp_path / "run", **interpreter)
    assert time.monotonic() - begin < 30
    assert done.returncode == 7
    assert "a process ended with code 7" in done.stderr
    assert not any(command.startswith("evaluate") for command in commands(tmp_path))
    if (tmp_path / "pid").exists():
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / "pid").read_text()), 0)


def test_all_processes_are_stopped_by_sigterm_and_may_save(pretended, tmp_path):
    train = f"""
trap 'sleep 0.3; touch {tmp_path}/saved_$JAX_PROCESS_ID; exit 143' TERM
touch {tmp_path}/ready_$JAX_PROCESS_ID
while true; do sleep 0.1; done"""
    command = ["bash", str(REPOSITORY / "launch" / "local.sh"), "2", "--workdir", str(tmp_path / "run")]
    with subprocess.Popen(command, env=os.environ | pretended(train), cwd=tmp_path) as process:
        while len(list(tmp_path.glob("ready_*"))) < 2:
            assert process.poll() is None
            time.sleep(0.05)
        process.terminate()
        assert process.wait(timeout=30) == 143
    assert len(list(tmp_path.glob("saved_*"))) == 2
