"""Several processes on one machine."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import gems_jax, metrics, options

REPOSITORY = Path(__file__).parents[1]
# The null space takes most of the compilation, and the processes compile apart.
CHEAP = {"gems__null_space": False, "train__steps": 5}


def launch(*argv, timeout=300):
    environment = os.environ | {"PYTHON": sys.executable, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    command = ["bash", str(REPOSITORY / "launch" / "local.sh"), *map(str, argv)]
    return subprocess.run(command, cwd=REPOSITORY, env=environment, text=True, capture_output=True, timeout=timeout)


def losses(workdir):
    return [[line["loss/rec"], line["loss/src"], line["gate/rec"]] for line in metrics(workdir)]


def test_two_processes_tune_as_one_does(prepared, tmp_path):
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


def test_the_code_of_a_process_that_fails_is_returned_and_the_others_end(prepared, tmp_path):
    # Three rows cannot be shared by two processes.
    done = launch(2, *options(prepared.root, **CHEAP, train__batch_size=3), "--workdir", tmp_path / "run")
    assert done.returncode == 2
    assert "batch_size 3 must be positive and divisible by 2 processes" in done.stderr
    assert not (tmp_path / "run" / "config.yaml").exists()
