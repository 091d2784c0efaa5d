"""What happens around the steps of a run leaves them alone: Ctrl-C, evaluation, a step that hangs."""

import os
import signal
import time

import numpy as np
import pytest
from same_run import contents, timeless
from tiny import gems_jax, metrics, options

from gems_jax import cli
from gems_jax.data.batching.device_batches import DeviceBatches
from gems_jax.training.workdir.files import Log

# The quickest to compile.
CHEAP = {"train__method": "adamw", "train__steps": 5, "train__warmup": 2, "train__checkpoint_every": 2}


def train(prepared, workdir, **changed):
    return gems_jax("train", *options(prepared.root, **(CHEAP | changed)), "--workdir", workdir)


@pytest.fixture(scope="module")
def plain(prepared, tmp_path_factory):
    """A run that nothing happened to."""
    workdir = tmp_path_factory.mktemp("stopping") / "plain"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENBLAS_NUM_THREADS", "1")
        assert train(prepared, workdir) == 0
    return workdir


def assert_same_end(found, expected):
    (arrays, _), (wanted, _) = (contents(workdir, CHEAP["train__steps"]) for workdir in (found, expected))
    assert set(arrays) == set(wanted)
    for name in wanted:
        np.testing.assert_array_equal(arrays[name], wanted[name], err_msg=name)


def interrupted(monkeypatch, at, times):
    """Sends Ctrl-C so often when a step's line is written, which is while the next step runs."""
    write = Log.write

    def writing(log, line):
        write(log, line)
        if line["step"] == at:
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Log, "write", writing)


def test_one_ctrl_c_saves_and_the_run_goes_on_to_the_same_end(prepared, plain, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupted(patch, at=2, times=1)
        assert train(prepared, run) == 130
    said = capsys.readouterr().err
    assert "Ctrl-C again leaves at once" in said
    assert f"stopped by a signal at step 3; saved in {run}" in said
    assert train(prepared, run) == 0
    assert "resuming from step 3" in capsys.readouterr().out
    assert_same_end(run, plain)
    assert timeless(metrics(run)) == timeless(metrics(plain))


def test_two_ctrl_cs_leave_without_saving_and_the_checkpoint_before_serves(
    prepared, plain, tmp_path, monkeypatch, capsys
):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupted(patch, at=3, times=2)
        assert train(prepared, run) == cli.EXIT_INTERRUPTED
    assert "gems-jax: left" in capsys.readouterr().err
    assert not (run / "lock.json").exists()
    assert train(prepared, run) == 0
    assert "resuming from step 2" in capsys.readouterr().out
    assert_same_end(run, plain)


def test_evaluation_changes_nothing_of_the_training(prepared, plain, tmp_path):
    run = tmp_path / "run"
    assert train(prepared, run, train__eval_every=1, train__eval_rows=4, text__eval_batches=1) == 0
    lines = timeless(metrics(run))
    assert sum("eval/general/loss" in line for line in lines) == CHEAP["train__steps"]
    assert [line for line in lines if "loss/rec" in line] == timeless(metrics(plain))
    assert_same_end(run, plain)


def test_a_watchdog_says_which_step_of_a_run_waits_for_data(prepared, tmp_path, monkeypatch, capsys):
    number, give = [0], DeviceBatches.__next__

    def giving(batches):
        number[0] += 1
        if number[0] == 4:
            time.sleep(2)
        return give(batches)

    monkeypatch.setattr(DeviceBatches, "__next__", giving)
    assert train(prepared, tmp_path / "run", train__hang_after=0.5) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "waiting for data" in line]
    assert len(said) == 1, said
    assert said[0].startswith("watchdog: step 4 has been waiting for data for")
