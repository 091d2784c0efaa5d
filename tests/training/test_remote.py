"""A work directory on an object store while a run writes there: its lines, its lock, its checkpoints' checksums."""

import dataclasses
import json
import time

import pytest

from gems_jax.checksums import damage, files_of, write_checksums
from gems_jax.config.items import ItemsConfig
from gems_jax.config.run import Config
from gems_jax.staging import as_path, is_remote, remove_folder, write_json
from gems_jax.training.tune import tune
from gems_jax.training.workdir import remote_lock
from gems_jax.training.workdir.files import Log, check_config, keep_config
from gems_jax.training.workdir.lock import WorkdirLock


@pytest.fixture
def workdir(bucket, request, monkeypatch):
    monkeypatch.setattr(remote_lock, "SETTLE_SECONDS", 0.0)
    return bucket / request.node.name


def test_paths_here_and_there_are_told_apart(workdir, tmp_path):
    assert is_remote(workdir)
    assert is_remote(workdir / "config.yaml")
    assert is_remote(str(workdir))
    assert not is_remote(as_path(tmp_path))


def test_a_configuration_is_kept_and_compared(workdir):
    keep_config(Config(), workdir)
    check_config(Config(), workdir)
    with pytest.raises(ValueError, match=f"{workdir} belongs to another configuration"):
        check_config(dataclasses.replace(Config(), items=ItemsConfig(max_length=1)), workdir)
    assert workdir.names() == ["config.yaml"]


def test_lines_are_there_with_every_checkpoint_and_at_the_end_and_go_on(workdir):
    path = workdir / "metrics.jsonl"
    with Log(workdir, True) as log:
        log.truncate(0)
        log.write({"step": 1})
        assert path.read_text() == ""
        log.flush()
        assert path.read_text() == '{"step": 1}\n'
        log.write({"step": 2})
    with Log(workdir, True) as log:
        log.truncate(1)
        log.write({"step": 2, "again": 1})
        assert [line["step"] for line in log.lines()] == [1, 2]
    assert list(Log(workdir, False).lines()) == [{"step": 1}, {"step": 2, "again": 1}]


def test_lines_are_written_now_and_then_without_a_checkpoint(workdir, monkeypatch):
    monkeypatch.setattr("gems_jax.training.workdir.files.FLUSH_SECONDS", 0.0)
    with Log(workdir, True) as log:
        log.write({"step": 1})
        assert list(Log(workdir, False).lines()) == [{"step": 1}]


def test_a_second_process_is_refused_until_the_first_one_has_ended_or_is_gone(workdir, monkeypatch, capsys):
    monkeypatch.setattr(remote_lock, "RENEW_SECONDS", 0.01)
    with WorkdirLock(workdir):
        before = json.loads((workdir / "lock.json").read_text())["renewed"]
        with pytest.raises(ValueError, match=f"{workdir} is in use by process"), WorkdirLock(workdir):
            pass
        with WorkdirLock(workdir, active=False):  # another process of the same run
            pass
        deadline = time.monotonic() + 10
        while json.loads((workdir / "lock.json").read_text())["renewed"] == before:
            assert time.monotonic() < deadline
    assert not (workdir / "lock.json").exists()
    (workdir / "lock.json").write_text(json.dumps({"pid": 1, "host": "gone", "renewed": time.time() - 1000}))
    with WorkdirLock(workdir):
        assert f"taking over {workdir} from process 1 on gone" in capsys.readouterr().out


def test_damage_is_found_there_too(workdir):
    folder = workdir / "checkpoints" / "5"
    (folder / "params" / "a").write_bytes(b"12345")
    write_json(folder / "b.json", 1)
    assert damage(folder) == "checksums.json is missing: it was not written to its end"
    write_checksums(folder)
    (folder / "commit_success.txt").write_text("")  # which orbax writes last, on Google's store
    assert damage(folder) is None
    assert files_of(folder) == ["b.json", "params/a"]
    (folder / "params" / "a").write_bytes(b"12354")
    assert damage(folder) == "params/a has other content than was written"
    (folder / "params" / "a").write_bytes(b"1234")
    assert damage(folder) == "params/a has 4 bytes of 5"
    (folder / "params" / "a").unlink()
    assert damage(folder) == "params/a is missing"
    remove_folder(folder)
    assert not folder.exists()


def test_a_profile_there_is_refused_before_anything_is_made(workdir):
    config = dataclasses.replace(Config(), train=dataclasses.replace(Config().train, profile=(2, 3)))
    with pytest.raises(ValueError, match="train.profile writes to this machine's disk alone"):
        tune(config, None, None, workdir)
    assert not workdir.exists()
