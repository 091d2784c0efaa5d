"""Checkpoints: what is kept, what damage is found, and what is said when nothing can be written."""

import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from gems_jax.checksums import damage, write_checksums
from gems_jax.training.workdir import checkpoints as module
from gems_jax.training.workdir.checkpoints import Checkpoints
from gems_jax.training.workdir.lock import WorkdirLock

PARAMS = {"a": jnp.arange(2000.0), "b": {"c": jnp.ones((3, 4))}}
STATE = (jnp.zeros((), jnp.int32), {"m": jnp.ones(5)})


def after(step):
    return jax.tree.map(lambda x: x + step, PARAMS), jax.tree.map(lambda x: x + step, STATE)


def position(step, best=None):
    return {"batches": {"step": step}, "best": {"step": best}}


def saved(folder, *steps, keep=2, best=None):
    with Checkpoints(folder, keep) as checkpoints:
        for step in steps:
            if step == best:
                checkpoints.best_step = step
            checkpoints.save(step, *after(step), position(step, checkpoints.best_step))
    return folder


@pytest.fixture
def three(tmp_path):
    return saved(tmp_path / "run" / "checkpoints", 1, 2, 3, keep=3)


def largest(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def test_what_was_saved_comes_back_bit_for_bit(three):
    with Checkpoints(three) as checkpoints:
        found = checkpoints.restore_latest(PARAMS, STATE)
    params, state = after(3)
    assert found.step == 3
    assert found.position == position(3)
    jax.tree.map(np.testing.assert_array_equal, (found.params, found.opt_state), (params, state))


def test_the_newest_and_the_best_are_kept(tmp_path):
    folder = saved(tmp_path / "checkpoints", 1, 2, 3, 4, 5, best=2)
    with Checkpoints(folder, writes=False) as checkpoints:
        assert checkpoints.steps() == [2, 4, 5]
        np.testing.assert_array_equal(checkpoints.restore_params(PARAMS, "best")["a"], PARAMS["a"] + 2)
        np.testing.assert_array_equal(checkpoints.restore_params(PARAMS)["a"], PARAMS["a"] + 5)


def test_a_best_checkpoint_that_there_is_not_is_an_error(three):
    with (
        Checkpoints(three, writes=False) as checkpoints,
        pytest.raises(FileNotFoundError, match="no best checkpoint .*train.metric"),
    ):
        checkpoints.restore_params(PARAMS, "best")


def flip_two_bytes(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    content[len(content) // 3] ^= 255
    path.write_bytes(content)


DAMAGE = {
    "other content": lambda folder: flip_two_bytes(largest(folder)),
    "bytes of": lambda folder: largest(folder).write_bytes(largest(folder).read_bytes()[:-7]),
    "is missing": lambda folder: largest(folder).unlink(),
    "not written to its end": lambda folder: (folder / "checksums.json").unlink(),
    "checksums.json is damaged": lambda folder: (folder / "checksums.json").write_text("{"),
    "was not written with it": lambda folder: (folder / "params" / "more").write_text("x"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_found_and_the_checkpoint_before_is_used(kind, three):
    DAMAGE[kind](three / "3")
    with (
        pytest.warns(UserWarning, match=f"{three / '3'} is damaged .*{kind}.*using that of step 2"),
        Checkpoints(three, writes=False) as checkpoints,
    ):
        np.testing.assert_array_equal(checkpoints.restore_params(PARAMS)["a"], PARAMS["a"] + 2)
    assert (three / "3").is_dir()  # reading changes nothing

    with Checkpoints(three) as checkpoints:
        with pytest.warns(UserWarning, match="put aside in .*damaged/3.0"):
            found = checkpoints.restore_latest(PARAMS, STATE)
        assert found.step == 2
        checkpoints.save(3, *after(3), position(3))
        checkpoints.wait()
        assert checkpoints.steps() == [2, 3]
    assert damage(three / "3") is None


def test_orbax_alone_would_not_have_noticed_two_flipped_bytes(three):
    path = largest(three / "3" / "params")
    content = bytearray(path.read_bytes())
    place = len(content) // 2
    content[place], content[place + 1] = content[place] ^ 1, content[place + 1] ^ 1
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ocp.StandardCheckpointer().restore(three / "3" / "params")
    assert damage(three / "3") is not None


def test_checkpoints_that_are_all_damaged_are_an_error_that_names_them(three):
    for step in (1, 2, 3):
        DAMAGE["is missing"](three / str(step))
    with Checkpoints(three) as checkpoints, pytest.raises(ValueError, match="no intact checkpoint .*/3: .*/1: "):
        checkpoints.restore_latest(PARAMS, STATE)
    assert sorted(path.name for path in three.iterdir()) == ["1", "2", "3"]


def test_no_checkpoint_at_all_is_a_beginning_or_an_error(tmp_path):
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.restore_latest(PARAMS, STATE) is None
        with pytest.raises(FileNotFoundError, match="run gems-jax train first"):
            checkpoints.restore_params(PARAMS)
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        Checkpoints(tmp_path / "nowhere", writes=False)


def test_parameters_of_another_shape_are_named(three):
    with Checkpoints(three) as checkpoints, pytest.raises(ValueError, match="does not fit this model and optimiser"):
        checkpoints.restore_latest({"a": PARAMS["a"]}, STATE)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nothing_that_is_not_finite_enters_a_checkpoint(value, three):
    params, state = after(4)
    params["b"]["c"] = params["b"]["c"].at[1, 2].set(value)
    with Checkpoints(three) as checkpoints:
        with pytest.raises(
            ValueError, match=r"the params hold nan or inf \(b/c\) and are not saved: lower train.learning_rate"
        ):
            checkpoints.save(4, params, state, position(4))
        assert checkpoints.steps() == [1, 2, 3]


def test_a_full_disk_is_an_error_and_leaves_the_checkpoints_before(three, monkeypatch):
    def full(folder):
        (folder / "checksums.json").write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_checksums", full)
    wanted = r"of step 4 could not be written to .*No space left on device.*the one of step 3 is untouched"
    with pytest.raises(OSError, match=wanted), Checkpoints(three, keep=3) as checkpoints:
        checkpoints.save(4, *after(4), position(4))
    monkeypatch.undo()
    assert sorted(path.name for path in three.iterdir()) == ["1", "2", "3"]
    assert [damage(three / str(step)) for step in (1, 2, 3)] == [None] * 3


def test_a_half_written_checkpoint_is_cleared_away(three):
    (three / "4.orbax-checkpoint-tmp").mkdir()
    with Checkpoints(three) as checkpoints:
        assert checkpoints.restore_latest(PARAMS, STATE).step == 3
    assert not (three / "4.orbax-checkpoint-tmp").exists()


def test_a_disk_that_fills_up_inside_a_file_is_an_error_and_leaves_the_checkpoint_before(tmp_path):
    large = {"a": jax.random.normal(jax.random.key(0), (1000, 1000))}  # nothing that compresses
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    wanted = "of step 2 could not be written to .*the one of step 1 is untouched"
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, large, STATE, position(1))
        checkpoints.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))  # bytes of one file
        try:
            checkpoints.save(2, large, STATE, position(2))
            with pytest.raises(OSError, match=wanted):
                checkpoints.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
    assert damage(tmp_path / "1") is None


@contextlib.contextmanager
def read_only(folder):
    """Takes the permission to write; from root, too, for whom nothing is read-only."""
    user = os.geteuid()
    folder.chmod(0o555)
    try:
        if user == 0:
            os.seteuid(65534)
        yield
    finally:
        os.seteuid(user)
        folder.chmod(0o755)


def test_a_read_only_directory_is_an_error_and_its_checkpoints_stay():
    # Not in pytest's folder, which is its user's alone.
    with tempfile.TemporaryDirectory() as name:
        folder = saved(Path(name), 1, 2)
        with read_only(folder), pytest.raises(OSError, match="cannot be written to"), WorkdirLock(folder):
            pass
        wanted = "of step 3 could not be written to .*the one of step 2 is untouched"
        with Checkpoints(folder) as checkpoints, read_only(folder), pytest.raises(OSError, match=wanted):
            checkpoints.save(3, *after(3), position(3))
        assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]
        assert [damage(folder / step) for step in "12"] == [None, None]


def test_a_directory_that_cannot_be_written_to_is_an_error(tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(OSError, match="run cannot be written to .*another --workdir"), WorkdirLock(tmp_path / "run"):
        pass


def test_a_second_process_on_a_work_directory_is_refused(tmp_path):
    program = f"""
from pathlib import Path
from gems_jax.training.workdir.lock import WorkdirLock
with WorkdirLock(Path({str(tmp_path)!r})):
    print("mine", flush=True)
    input()
"""
    with subprocess.Popen([sys.executable, "-c", program], stdin=-1, stdout=-1, text=True) as other:
        assert other.stdout.readline() == "mine\n"
        with pytest.raises(ValueError, match=f"in use by process {other.pid}: wait .*another --workdir"):
            WorkdirLock(tmp_path).__enter__()
        other.kill()
        other.wait()
    with WorkdirLock(tmp_path):  # the other is gone
        held = json.loads((tmp_path / "lock.json").read_text())
    assert held["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_of_another_machine_or_of_a_number_used_again(tmp_path, capsys):
    lock = tmp_path / "lock.json"
    holder = {"pid": os.getpid(), "host": "elsewhere", "started": "1"}
    lock.write_text(json.dumps(holder))
    with pytest.raises(ValueError, match=f"process {os.getpid()} on elsewhere: .*if it is gone, remove {lock}"):
        WorkdirLock(tmp_path).__enter__()
    lock.write_text("{")
    with pytest.raises(ValueError, match="lock.json is damaged: remove it"):
        WorkdirLock(tmp_path).__enter__()
    lock.write_text(json.dumps(holder | {"host": os.uname().nodename}))  # this number, another start
    with WorkdirLock(tmp_path):
        assert "taking over" in capsys.readouterr().out


def test_checksums_are_of_all_files(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "x").write_bytes(b"abc")
    write_checksums(tmp_path)
    written = json.loads((tmp_path / "checksums.json").read_text())
    # SHA-256 of "abc", from FIPS 180-2.
    assert written == {
        "d/x": {"bytes": 3, "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}
    }
