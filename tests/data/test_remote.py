"""Prepared datasets on an object store: copied whole, and only when they are new."""

import pytest

from gems_jax.data import prepare as prepare_module
from gems_jax.data.batching.token_cache import encode_once
from gems_jax.data.dataset import remote
from gems_jax.data.prepare import prepare
from gems_jax.object_store import StorePath

URL = "s3://bucket/data"


@pytest.fixture
def store(bucket, tmp_path, monkeypatch):
    """The place of the dataset, which is empty, and so is this machine's cache."""
    (bucket / "data").rmtree()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "first_machine"))
    return bucket / "data"


def make(said=None, **options):
    say = None if said is None else said.append
    return prepare("marketplace", URL, num_users=40, num_negatives=3, progress=say, **options)


def content(folder):
    if isinstance(folder, StorePath):
        return {name: (folder / name).read_bytes() for name in folder.names()}
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_dataset_made_here_is_sent_there_and_read_by_other_machines(store, tmp_path, monkeypatch):
    first = make()
    assert content(store) == content(remote.local_path(URL))
    assert remote.exists(URL)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "second_machine"))
    monkeypatch.setattr(prepare_module.marketplace, "load", None)
    said = []
    second = make(said)
    local = remote.local_path(URL)
    assert said[0] == f"data: copying {URL} to {local}"
    assert [line.split(" (")[0] for line in said[1:]] == [f"data: {local} is prepared already"]
    assert second.card == first.card
    again = []
    make(again)
    assert len(again) == 1
    assert "is prepared already" in again[0]


def test_another_dataset_there_is_neither_used_nor_replaced(store):
    make()
    before = content(store)
    with pytest.raises(ValueError, match=f"{URL} holds another dataset than the one asked for: seed: 0 there, 1 here"):
        make(seed=1)
    assert content(store) == before


def test_a_copy_that_was_interrupted_is_no_dataset_and_is_made_good(store, monkeypatch):
    write = StorePath.write_bytes
    count = []

    def failing(self, data):
        count.append(self)
        if len(count) == 2:
            raise OSError("the connection broke")
        return write(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(StorePath, "write_bytes", failing)
        with pytest.raises(OSError, match="the connection broke"):
            make()
    assert store.is_dir()
    assert not remote.exists(URL)
    make()
    assert content(store) == content(remote.local_path(URL))


def test_raw_files_and_tokens_must_be_on_this_machine(tmp_path):
    with pytest.raises(ValueError, match=r"data\.path gs://bucket/raw is not on this machine"):
        prepare("table", tmp_path / "out", path="gs://bucket/raw")
    with pytest.raises(ValueError, match="tokens cannot be mapped into memory from gs://bucket/tokens"):
        encode_once(None, None, None, "", 8, "gs://bucket/tokens")
