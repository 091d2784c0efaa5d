"""Objects on a store: what is read is what was written, a store that fails is asked again, then one error names it.

All of it on both kinds of stores.
"""

import pytest
from google_server import google_server
from store_server import SECRET, store_server

from gems_jax import object_store
from gems_jax.object_store import StorePath
from gems_jax.staging import as_path, files_in, remove_folder, write_json, write_text


@pytest.fixture(scope="module", params=[store_server, google_server], ids=["s3", "gs"])
def server(request):
    with request.param() as served:
        yield served


@pytest.fixture
def folder(bucket, request):
    return bucket / request.node.name.partition("[")[0]


def test_objects_are_read_listed_and_removed_as_they_were_written(folder):
    write_text(folder / "a" / "b.txt", "größer")
    (folder / "empty").write_bytes(b"")
    write_json(folder / "ab.json", {"x": 1})
    assert (folder / "a/b.txt").read_text() == "größer"
    assert (folder / "empty").read_bytes() == b""
    assert folder.names() == ["a/b.txt", "ab.json", "empty"]
    assert [str(path) for path in folder.iterdir()] == [f"{folder}/{name}" for name in ("a", "ab.json", "empty")]
    assert [path.name for path in folder.glob("a*")] == ["a", "ab.json"]
    assert [path.name for path in folder.glob("a/*.txt")] == ["b.txt"]
    assert [name for name, _ in files_in(folder, "x/")] == ["x/a/b.txt", "x/ab.json", "x/empty"]
    assert (folder / "a").is_dir()
    assert not (folder / "a").is_file()
    assert (folder / "empty").is_file()
    assert not (folder / "ab").exists()  # "ab.json" begins so
    write_text(folder / "ab.json", "2")
    assert (folder / "ab.json").read_text() == "2"
    (folder / "ab.json").unlink()
    assert folder.names() == ["a/b.txt", "empty"]
    remove_folder(folder)
    assert not folder.exists()


def test_what_is_not_there_says_so(folder):
    nowhere = StorePath(f"{folder.scheme}://nowhere/x")
    with pytest.raises(FileNotFoundError, match=f"{folder}/x does not exist"):
        (folder / "x").read_bytes()
    with pytest.raises(FileNotFoundError, match=f"{folder}/x does not exist"):
        (folder / "x").unlink()
    (folder / "x").unlink(missing_ok=True)
    for what, ask in (
        ("listed", nowhere.names),
        ("listed", nowhere.exists),
        ("written", lambda: nowhere.write_text("")),
    ):
        with pytest.raises(OSError, match=rf"{nowhere} cannot be {what} \(.*[bB]ucket.*look at the address"):
            ask()


@pytest.mark.parametrize("address", ["s3://", "az://bucket/x", "s3://bucket/../other", "gs:///x"])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(ValueError, match="is no address on an object store: write gs://BUCKET/NAME or s3://"):
        as_path(address)


def test_large_objects_of_known_size_come_in_parts_and_appear_whole(folder, faults, tmp_path, monkeypatch):
    monkeypatch.setattr(object_store, "_PART", 10)
    for size, requests in ((0, 1), (9, 1), (10, 1), (20, 2), (25, 3)):
        content = bytes(range(size))
        (folder / "x").write_bytes(content)
        faults.asked.clear()
        (folder / "x").download(tmp_path / "x", size)
        assert (tmp_path / "x").read_bytes() == content
        assert len(faults.asked) == requests
        (folder / "x").download(tmp_path / "x")
        assert (tmp_path / "x").read_bytes() == content
    with pytest.raises(OSError, match=f"{folder}/x cannot be read"):
        (folder / "x").download(tmp_path / "y", 26)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_an_object_that_is_replaced_while_it_is_read_is_not_mixed(folder, faults, tmp_path, monkeypatch):
    monkeypatch.setattr(object_store, "_PART", 10)
    (folder / "x").write_bytes(b"a" * 25)
    tried = StorePath._tried

    def replacing(path, what, call):
        if what == "read":
            (folder / "x").write_bytes(str(len(faults.asked)).encode() * 25)
        return tried(path, what, call)

    monkeypatch.setattr(StorePath, "_tried", replacing)
    with pytest.raises(OSError, match=f"{folder}/x was replaced while it was read"):
        (folder / "x").download(tmp_path / "x", 25)
    assert list(tmp_path.iterdir()) == []


FAULTS = ["503 Slow Down", "500 Internal Server Error", "slow", "cut", "half"]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_store_that_fails_for_a_while_is_asked_again(folder, faults, tmp_path, fault):
    (folder / "x").write_text("content")
    faults.next += [fault]
    assert (folder / "x").read_text() == "content"
    if fault != "half":
        faults.next += [fault]
        (folder / "x").write_text("more")
        faults.next += [fault]
        assert folder.names() == ["x"]
        faults.next += [fault]
        (folder / "x").download(tmp_path / "x")
        assert (tmp_path / "x").read_text() == "more"


@pytest.mark.parametrize("fault", ["503 Slow Down", "cut", "half"])
def test_a_store_that_goes_on_failing_ends_with_one_error_that_names_the_address(folder, faults, tmp_path, fault):
    (folder / "x").write_text("content")
    faults.asked.clear()
    faults.next += [fault] * 100
    with pytest.raises(OSError, match=f"{folder}/x cannot be read .*: start again when the store answers") as said:
        (folder / "x").download(tmp_path / "x")
    assert len(faults.asked) == 4
    assert SECRET not in str(said.value)
    assert list(tmp_path.iterdir()) == []


def test_what_a_store_refuses_is_not_tried_again(folder, faults):
    faults.asked.clear()
    faults.next += ["403 Forbidden"]
    with pytest.raises(OSError, match=f"{folder}/x cannot be written .*: these credentials are not allowed to"):
        (folder / "x").write_text("")
    assert len(faults.asked) == 1


@pytest.mark.parametrize(
    ("answer", "said"),
    [("403 Forbidden", "these credentials are not allowed to"), ("401 Unauthorized", "look at the credentials in the")],
)
def test_a_list_that_is_refused_is_no_empty_one(folder, faults, answer, said):
    (folder / "x").write_text("")
    if folder.scheme == "gs":  # on the other one refusal is an error
        faults.next[:] = [answer]
        assert folder.names() == ["x"]
    for ask in (folder.names, (folder / "x").is_file):
        faults.next[:] = [answer] * 9
        with pytest.raises(OSError, match=f"{folder}.* cannot be listed .*: {said}"):
            ask()


@pytest.mark.parametrize("server", [store_server], ids=["s3"], indirect=True)  # emulators of the other ask for none
def test_without_credentials_the_error_names_them(folder, monkeypatch):
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    object_store._opened.cache_clear()
    with pytest.raises(OSError, match=f"{folder}/x cannot be read .*: look at the credentials in the environment"):
        (folder / "x").read_text()
    object_store._opened.cache_clear()
