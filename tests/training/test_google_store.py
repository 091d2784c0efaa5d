"""Runs on Google's store, whose checkpoints orbax writes there by itself: they end with the bits of runs here.

Other commands read a copy of such a run, which is made here, and do what they do on any store, see test_stores.py.
"""

import shutil
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from google_server import google_server
from identified import identified_options
from store_server import put
from tiny import fails, gems_jax, metrics, say

from gems_jax.checksums import write_checksums
from gems_jax.object_store import StorePath
from gems_jax.training.workdir import copies
from gems_jax.training.workdir.checkpoints import Checkpoints


@pytest.fixture(scope="module")
def server():
    with google_server() as served:
        yield served


@pytest.fixture(scope="module")
def train(prepared, tmp_path_factory):
    """The words of a run of two steps without its place, and this run here."""
    root = tmp_path_factory.mktemp("google")
    words = ("train", *identified_options(prepared, root), "--workdir")
    say({}, *words, root / "run")
    return words, root / "run"


@pytest.fixture
def store(bucket, request, tmp_path, monkeypatch):
    monkeypatch.setattr("gems_jax.training.workdir.remote_lock.SETTLE_SECONDS", 0.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return bucket / request.node.name


def said(capsys, *argv):
    """What a command that must succeed prints."""
    capsys.readouterr()
    assert gems_jax(*argv) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def arrays(folder):
    """All that the last checkpoint of a run holds."""
    parts = [
        ocp.StandardCheckpointer().restore(folder / "checkpoints" / "2" / name) for name in ("params", "optimiser")
    ]
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(parts)]


def test_a_run_that_ends_in_a_save_goes_on_to_the_bits_of_one_here(train, store, tmp_path, capsys, monkeypatch):
    words, here = train

    def broken(folder):
        if folder.name == "2":
            raise OSError("the connection broke")
        write_checksums(folder)

    with monkeypatch.context() as patch:
        patch.setattr("gems_jax.training.workdir.checkpoints.write_checksums", broken)
        message = fails(capsys, *words, store)
    assert f"step 2 could not be written to {store}/checkpoints (the connection broke): look at the store" in message
    assert "the one of step 1 is untouched" in message
    assert (store / "checkpoints" / "2").is_dir()
    assert f"train: resuming from step 1 in {store}" in said(capsys, *words, store)
    assert {name.split("/")[0] for name in (store / "checkpoints").names()} == {"1", "2"}
    store.download_all(store.names(), tmp_path / "there")
    assert arrays(tmp_path / "there") == arrays(here)
    losses = [[(line["step"], line["loss/rec"], line["loss/src"]) for line in metrics(run)] for run in (store, here)]
    assert losses[0] == losses[1]


def test_a_run_that_was_copied_there_is_gone_on_with_from_its_newest_intact_checkpoint(train, store, tmp_path, capsys):
    words, here = train
    shutil.copytree(here, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "2" / "data" / "metadata").write_text("{}")
    put(tmp_path / "run", store)
    with pytest.warns(UserWarning, match=f"2 is damaged .*put aside in {store}/damaged/2.0; using that of step 1"):
        assert f"train: resuming from step 1 in {store}" in said(capsys, *words, store)
    store.download_all(store.names(), tmp_path / "there")
    assert arrays(tmp_path / "there") == arrays(here)
    assert [path.name for path in (copies.opened(store) / "checkpoints").iterdir()] == ["2"]


def test_a_store_that_does_not_answer_or_a_package_that_is_missing_is_one_error(
    train, store, faults, capsys, monkeypatch
):
    words, _ = train
    assert "cannot be listed (NOT_FOUND: there is no bucket nowhere)" in fails(capsys, *words, "gs://nowhere/run")
    faults.next += ["403 Forbidden"] * 1000
    with pytest.raises(OSError, match="these credentials are not allowed to"):
        Checkpoints(StorePath(store / "checkpoints"))
    faults.next.clear()
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    for more in ((), ("--dry-run",)):
        message = fails(capsys, *words, store, *more)
        assert 'the package gcsfs, which is not installed: pip install "gems-jax[train,gcs]"' in message
    assert not store.exists()
