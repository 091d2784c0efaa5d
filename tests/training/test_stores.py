"""Commands on a run whose work directory is on an object store: what they give is what they give of a folder here.

One server and one run of two steps serve all tests.
"""

import json
import shutil

import pytest
from identified import identified_options
from store_server import put, store_server
from tiny import everything_in, fails, gems_jax, say

import gems_jax as gj
from gems_jax.training.workdir.copies import copy_of


@pytest.fixture(scope="module")
def server():
    with store_server() as served:
        yield served


@pytest.fixture
def faults(server):
    yield server[0]
    server[0].next.clear()


@pytest.fixture(scope="module")
def tuned(prepared, tmp_path_factory):
    """A run of two steps whose items share tokens, on this machine."""
    root = tmp_path_factory.mktemp("stores")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENBLAS_NUM_THREADS", "1")
        say({}, "train", *identified_options(prepared, root), "--workdir", root / "run")
    return root / "run"


@pytest.fixture
def store(server, tuned, request, tmp_path, monkeypatch):
    """The same run on a store; this machine has no copies yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = server[1] / request.node.name / "run"
    put(tuned, folder)
    return folder


def said(capsys, *argv):
    """What a command that must succeed prints."""
    capsys.readouterr()
    assert gems_jax(*argv) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def contents(folder):
    if hasattr(folder, "names"):
        return {name: (folder / name).read_bytes() for name in folder.names()}
    return {name: (folder / name).read_bytes() for name in everything_in(folder) if (folder / name).is_file()}


def test_search_finds_what_it_finds_here_and_copies_a_checkpoint_once(store, tuned, faults, capsys):
    query = ("search", "lamp", "--user", "user0003", "--workdir")
    here = said(capsys, *query, tuned)
    assert said(capsys, *query, store) == here
    faults.asked.clear()
    faults.next += ["503 Slow Down", "cut"]
    assert said(capsys, *query, store) == here
    assert not [path for _, path in faults.asked if "/params/" in path]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gems_jax.training.workdir.copies.damage", lambda folder: None)
        for path in copy_of(store).glob("checkpoints/2/params/d/*"):
            path.write_bytes(b"of a bad disk")
    assert said(capsys, *query, store) == here  # what is not as it was written is copied again
    assert contents(store) == contents(tuned)
    assert gj.Recommender(str(store)).tasks == gj.Recommender(tuned).tasks


def test_what_a_store_does_not_hold_or_give_is_one_error_that_names_the_address(store, faults, capsys):
    query = ("search", "lamp", "--user", "user0003", "--workdir")
    assert f"{store.parent} is no work directory (no config.yaml)" in fails(capsys, *query, store.parent)
    faults.next += ["503 Slow Down"] * 100
    message = fails(capsys, *query, store)
    assert f"{store}/config.yaml cannot be " in message
    assert "start again when the store answers" in message
    faults.next.clear()
    (store / "checkpoints" / "1" / "checksums.json").unlink()
    sums = (store / "checkpoints" / "2" / "checksums.json").read_text()
    (store / "checkpoints" / "2" / "checksums.json").write_text(sums.replace('"bytes": ', '"bytes": 1'))
    assert f"no intact checkpoint in {store}/checkpoints" in fails(capsys, *query, store)
    (store / "checkpoints" / "2" / "checksums.json").unlink()
    assert f"{store} holds no checkpoint yet" in fails(capsys, *query, store)


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(store, tuned, capsys, tmp_path):
    name = next(name for name in store.names() if name.startswith("checkpoints/2/params/d/"))
    (store / name).write_bytes(b"not what was written")
    with pytest.warns(UserWarning, match=rf"checkpoint {store}/checkpoints/2 is damaged .*; using that of step 1"):
        found = said(capsys, "search", "lamp", "--user", "user0003", "--workdir", store)
    shutil.copytree(tuned, tmp_path / "older")
    shutil.rmtree(tmp_path / "older" / "checkpoints" / "2")
    assert found == said(capsys, "search", "lamp", "--user", "user0003", "--workdir", tmp_path / "older")


def test_an_export_to_a_store_is_the_folder_that_is_written_here(store, tuned, server, tmp_path, capsys, faults):
    there = store.parent / "export"
    said(capsys, "export", "--workdir", tuned, "--out", tmp_path / "export")
    said(capsys, "export", "--workdir", store, "--out", there)
    here, found = contents(tmp_path / "export"), contents(there)
    assert json.loads(found.pop("export.json")) == {"run": str(store)}
    here.pop("export.json")
    assert found == here
    # The mark comes last: what was interrupted is no export, and is not taken for one.
    puts = [path for method, path in faults.asked if method == "PUT" and "/export/" in path]
    assert puts[-1].endswith("/export.json")
    said(capsys, "export", "--workdir", store, "--out", there)
    assert contents(there).keys() == {"export.json", *here}
    (there / "mine.txt").write_text("")
    assert "holds what no export wrote" in fails(capsys, "export", "--workdir", store, "--out", there)
    assert f"is no export of {tuned}" in fails(capsys, "export", "--workdir", tuned, "--out", there)
    inside = store / "checkpoints" / "export"
    assert "lies in the folder of the run's checkpoints" in fails(capsys, "export", "--workdir", store, "--out", inside)
    assert "NoSuchBucket" in fails(capsys, "export", "--workdir", store, "--out", "s3://nowhere/x")


def test_an_evaluation_is_written_to_the_store_and_compared_with_from_there(store, tuned, tmp_path, capsys):
    small = ("--evaluate.rows", 4, "--evaluate.baselines", "[popularity]", "--evaluate.candidates", "sampled")
    (store / "catalogue" / "ranking_rec.npz").write_bytes(b"of an earlier evaluation")
    shown = said(capsys, "evaluate", "--workdir", store, *small)
    assert f"evaluate: {store}/eval.json" in shown
    made = set(store.names()) - set(everything_in(tuned))
    assert made == {"eval.json", "report.html", "ranking_rec.npz", "ranking_src.npz"}
    shutil.copytree(tuned, tmp_path / "run")
    compare = ("--evaluate.compare", json.dumps({"there": str(store)}))
    said(capsys, "evaluate", "--workdir", tmp_path / "run", *small, *compare)
    there = json.loads((store / "eval.json").read_text())
    here = json.loads((tmp_path / "run" / "eval.json").read_text())
    assert here["paired"]["there"]["rec"]["ndcg@10"]["difference"] == 0
    assert {name: here[name] for name in ("rec", "src", "general")} == {
        name: there[name] for name in ("rec", "src", "general")
    }
