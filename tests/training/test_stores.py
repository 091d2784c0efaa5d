"""Commands on a run whose work directory is on an object store: what they give is what they give of a folder here.

One server and one run of two steps serve all tests. More than 20 s of CPU, most of it compilation: each command runs as
its users run it, on models that it loads, and is compared with itself on a folder here.
"""

import functools
import json
import shutil
import time

import pytest
from identified import identified_options
from serving_client import serving
from store_server import put
from tiny import everything_in, fails, gems_jax, metrics, say

from gems_jax.checksums import write_checksums
from gems_jax.evaluation.compare_runs import compare_runs
from gems_jax.serving.recommender import config_of_run, load_engine
from gems_jax.training.evaluate_run import read_evaluation
from gems_jax.training.export_folder import check_folder
from gems_jax.training.workdir import copies
from gems_jax.training.workdir.assets import read_record
from gems_jax.training.workdir.checkpoints import Checkpoints
from gems_jax.training.workdir.edits import NAME, write_edits


@pytest.fixture(scope="module")
def tuned(prepared, tmp_path_factory):
    """A run of two steps whose items share tokens, on this machine."""
    root = tmp_path_factory.mktemp("stores")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENBLAS_NUM_THREADS", "1")
        say({}, "train", *identified_options(prepared, root), "--workdir", root / "run")
    return root / "run"


@pytest.fixture
def store(bucket, tuned, request, tmp_path, monkeypatch):
    """The same run on a store; this machine has no copies yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = bucket / request.node.name / "run"
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
    folder = copies.opened(store)
    assert not [path for _, path in faults.asked if "/params/" in path]
    for path in folder.glob("checkpoints/2/params/d/*"):
        path.write_bytes(b"of a bad disk")
    copies.opened(store)  # what is not as it was written is copied again
    there = {name: data for name, data in contents(tuned).items() if not name.startswith("checkpoints/1/")}
    assert contents(folder) == there
    assert contents(store) == contents(tuned)


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


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(store):
    name = next(name for name in store.names() if name.startswith("checkpoints/2/params/d/"))
    (store / name).write_bytes(b"not what was written")
    with pytest.warns(UserWarning, match=rf"checkpoint {store}/checkpoints/2 is damaged .*; using that of step 1"):
        folder = copies.opened(store)
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["1"]


def test_the_best_checkpoint_is_copied_where_it_is_asked_for(server, tuned, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(tuned, tmp_path / "run")
    last, store = tmp_path / "run" / "checkpoints" / "2", server[1] / "best" / "run"
    position = json.loads((last / "data" / "metadata").read_text())
    (last / "data" / "metadata").write_text(json.dumps(position | {"best": position["best"] | {"step": 1}}))
    write_checksums(last)
    put(tmp_path / "run", store)
    for which, steps in (("best", ["1", "2"]), ("last", ["2"])):
        assert sorted(path.name for path in (copies.opened(store, which) / "checkpoints").iterdir()) == steps
    sums = store / "checkpoints" / "1" / "checksums.json"
    sums.write_text(sums.read_text().replace('"bytes": ', '"bytes": 1'))
    with pytest.raises(ValueError, match=rf"the best checkpoint {store}/checkpoints/1 is damaged"):
        copies.opened(store, "best")


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
    check_folder(there, store, "base")  # which would be replaced
    (there / "mine.txt").write_text("")
    assert "holds what no export wrote" in fails(capsys, "export", "--workdir", store, "--out", there)
    assert f"is no export of {tuned}" in fails(capsys, "export", "--workdir", tuned, "--out", there)
    inside = store / "checkpoints" / "export"
    assert "lies in the folder of the run's checkpoints" in fails(capsys, "export", "--workdir", store, "--out", inside)
    assert "NoSuchBucket" in fails(capsys, "export", "--workdir", store, "--out", "s3://nowhere/x")


def test_an_evaluation_is_written_to_the_store_and_compared_with_from_there(store, tuned, capsys):
    small = ("--evaluate.rows", 4, "--evaluate.baselines", "[popularity]", "--evaluate.candidates", "sampled")
    (store / "catalogue" / "ranking_rec.npz").write_bytes(b"of an earlier evaluation")
    shown = said(capsys, "evaluate", "--workdir", store, *small)
    assert f"evaluate: {store}/eval.json" in shown
    made = set(store.names()) - set(everything_in(tuned))
    assert made == {"eval.json", "report.html", "ranking_rec.npz", "ranking_src.npz"}
    # As a run that is compared with it reads it.
    folder = copies.evaluated(store)
    assert contents(folder) == {name: (store / name).read_bytes() for name in made}
    assert compare_runs(folder, folder, samples=5)["rec"]["ndcg@10"]["difference"] == 0
    assert read_evaluation(folder)["rec"]["ndcg@10"] == pytest.approx(
        compare_runs(folder, folder, samples=5)["rec"]["ndcg@10"]["a"]
    )


def test_requests_on_a_store_are_answered_there_as_they_are_here(store, tuned, tmp_path, capsys):
    lines = [{"user": "user0003", "k": 3}, {"user": "nobody"}, {"user": "user0003", "query": "lamp", "k": 2}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "r.jsonl").write_text(text)
    (store.parent / "r.jsonl").write_text(text)
    said(capsys, "predict", "--workdir", tuned, "--requests", tmp_path / "r.jsonl", "--out", tmp_path / "out.jsonl")
    out = store.parent / "out.jsonl"
    shown = said(capsys, "predict", "--workdir", store, "--requests", store.parent / "r.jsonl", "--out", out)
    assert f"predict: 2 requests answered in {out}" in shown
    assert f"with reasons in {out}.quarantine.jsonl" in shown
    for more in ("", ".quarantine.jsonl"):
        assert (out.parent / f"{out.name}{more}").read_text() == (tmp_path / f"out.jsonl{more}").read_text()


def test_items_are_added_removed_and_undone_on_the_store(store, tuned, tmp_path, capsys, faults, monkeypatch):
    monkeypatch.setattr("gems_jax.training.workdir.remote_lock.SETTLE_SECONDS", 0.0)

    def items(*argv):
        return said(capsys, "items", *argv, "--workdir", store)

    new = {"item_id": "new1", "title": "red copper lamp", "text": "for a desk"}
    (store.parent / "new.jsonl").write_text(json.dumps(new) + "\n")
    faults.next += ["503 Slow Down", "cut"]
    assert "added 1 (new1)  from new.jsonl" in items("add", store.parent / "new.jsonl")
    assert "catalogue edited: +1 -0 items since training" in items("list")
    known = next(iter(read_record(tuned).items))
    (store.parent / "ids.txt").write_text(f"{known}\n")
    assert "catalogue edited: +1 -1 items since training" in items("remove", "--ids", store.parent / "ids.txt")
    # Edits of the store are what a copy of it here has.
    shutil.copytree(tuned, tmp_path / "run")
    (tmp_path / "run" / NAME).write_bytes((store / NAME).read_bytes())
    listed = said(capsys, "items", "list", "--workdir", tmp_path / "run")
    assert items("list") == listed.replace(str(tmp_path / "run"), str(store))
    assert [len(listed.splitlines()), known in listed, "new1" in listed] == [3, True, True]
    items("undo")
    assert "the catalogue is that of training again" in items("undo")
    assert contents(store) == contents(tuned)
    assert f"{store} was not edited since training: there is nothing to undo" in fails(
        capsys, "items", "undo", "--workdir", store
    )


def test_an_edit_that_a_store_does_not_take_changes_nothing_and_a_held_lock_is_respected(
    store, tuned, capsys, faults, monkeypatch
):
    monkeypatch.setattr("gems_jax.training.workdir.remote_lock.SETTLE_SECONDS", 0.0)
    (store / "lock.json").write_text(json.dumps({"pid": 7, "host": "other", "renewed": time.time()}))
    remove = ("items", "remove", next(iter(read_record(tuned).items)), "--workdir", store)
    message = fails(capsys, *remove)
    assert f"{store} is in use by process 7 on other" in message
    (store / "lock.json").unlink()

    def failing(edits, folder):
        write_edits(edits, folder)
        faults.next += ["503 Slow Down"] * 4

    monkeypatch.setattr("gems_jax.training.edit_items.write_edits", failing)
    message = fails(capsys, *remove)
    assert f"{store}/{NAME} cannot be written" in message
    assert contents(store) == contents(tuned)


def test_a_service_answers_from_the_store_and_takes_over_what_has_changed_there(store, capsys, faults, monkeypatch):
    monkeypatch.setattr("gems_jax.training.workdir.remote_lock.SETTLE_SECONDS", 0.0)
    config = config_of_run(str(store))
    load = functools.partial(load_engine, config, str(store), batch_size=1, beams=4)
    with serving(load, batch_size=1) as client:
        ask = functools.partial(client, "POST", "/v1/search", {"query": "lamp", "k": 3})
        first = ask()[2]["items"]
        said(capsys, "items", "remove", first[0]["item_id"], "--workdir", store)
        assert ask()[2]["items"] == first  # until it is asked to look
        status, _, answer = client("POST", "/v1/reload")
        assert (status, answer["edited"]) == (200, "catalogue edited: +0 -1 items since training")
        second = ask()[2]["items"]
        assert first[0] not in second
        assert second[0] == first[1]
        faults.next += ["503 Slow Down"] * 100
        status, _, answer = client("POST", "/v1/reload")
        faults.next.clear()
        assert status == 500
        assert f"{store}" in str(answer)
        assert "start again when the store answers" in str(answer)
        assert ask()[2]["items"] == second


def test_a_run_trains_on_the_store_and_goes_on_there_when_a_checkpoint_could_not_be_sent(
    server, faults, prepared, tuned, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("gems_jax.training.workdir.remote_lock.SETTLE_SECONDS", 0.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store = server[1] / "trained"
    train = ("train", *identified_options(prepared, tuned.parent), "--workdir", store)
    sent = copies.send_checkpoints

    def failing(folder, place):
        if (folder / "2").is_dir():
            upload = copies.StorePath.upload_all
            halfway = lambda path, *args: faults.next.extend(["503 Slow Down"] * 4) or upload(path, *args)  # noqa: E731
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(copies.StorePath, "upload_all", halfway)
                sent(folder, place)
        sent(folder, place)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gems_jax.training.workdir.checkpoints.send_checkpoints", failing)
        message = fails(capsys, *train)
    assert f"{store}/checkpoints/2/" in message
    assert "cannot be written" in message
    faults.next.clear()
    assert (store / "checkpoints" / "1" / "checksums.json").is_file()
    assert not (store / "checkpoints" / "2" / "checksums.json").exists()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another_machine"))
    assert f"train: resuming from step 1 in {store}" in said(capsys, *train)
    assert {name.split("/")[1] for name in store.names() if name.startswith("checkpoints/")} == {"1", "2"}
    there = [json.loads(line) for line in (store / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss/rec"], line["loss/src"]) for line in there] == [
        (line["step"], line["loss/rec"], line["loss/src"]) for line in metrics(tuned)
    ]
    monkeypatch.setattr("jax.process_count", lambda: 2)
    with pytest.raises(ValueError, match=f"{store}/checkpoints: several processes write one checkpoint together"):
        Checkpoints(store / "checkpoints")
