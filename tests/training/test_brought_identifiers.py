"""Items come to runs whose identifiers are from a file, and bring theirs along.

About 25 s of CPU: two runs are tuned a step each, since codes, tokens and files meet in a run alone.
"""

import json
import shutil

import numpy as np
import pytest
from identified import RUN
from tiny import fails, gems_jax, options, read

import gems_jax as gj
from gems_jax.training.stages import ensure_data
from gems_jax.training.workdir.edits import read_edits

RUN = RUN | {"train__steps": 1}


def train(prepared, root, tokens_of, *words):
    """A run with a file of identifiers, each by the number of its item; and those of the file."""
    places = {"model__path": prepared.root / "base", "data__dir": prepared.root / "data"}
    ids = ensure_data(read("train", *options(root, **places), "--workdir", "x")).item_ids()
    tokens = {item_id: tokens_of(n) for n, item_id in enumerate(ids)}
    (root / "published.json").write_text(json.dumps(tokens))
    argv = options(root, **places, **RUN, items__identifiers=root / "published.json", items__max_length=48)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENBLAS_NUM_THREADS", "1")
        assert gems_jax("train", *argv, *words, "--workdir", root / "run") == 0
    return root / "run", tokens


@pytest.fixture(scope="module")
def own(prepared, tmp_path_factory):
    """Each item has an identifier of its own, seven under a first token; of the last first token some are free."""
    return train(prepared, tmp_path_factory.mktemp("own"), lambda n: [f"<a_{n // 7}>", f"<b_{n % 7}>"])


def bring(folder, run, identifiers):
    """Words of the command that adds an item for each identifier."""
    rows = [{"item_id": name, "title": f"red lamp {name}"} for name in identifiers if name.startswith("new")]
    (folder / "new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "brought.json").write_text(json.dumps(identifiers))
    return "items", "add", folder / "new.jsonl", "--identifiers", folder / "brought.json", "--workdir", run


def test_items_are_ranked_by_the_identifiers_that_they_bring_and_come_back_under_them(own, tmp_path, capsys):
    run, tokens = own
    shutil.copytree(run, tmp_path / "run")
    run, last = tmp_path / "run", f"<a_{(len(tokens) - 1) // 7}>"
    free = [[last, f"<b_{n}>"] for n in range(7) if [last, f"<b_{n}>"] not in tokens.values()]
    # A file may have items of the run and others, too; identifiers are lists or text.
    command = bring(tmp_path, run, tokens | {"new1": free[0], "new2": "".join(free[1]), "else": ["<q>"]})
    assert gems_jax(*command) == 0
    assert "added 2 (new1, new2)" in capsys.readouterr().out
    assert [list(one.tokens) for one in read_edits(run).added()] == free[:2]
    recommender = gj.Recommender(run)
    found = recommender.search("red lamp", allow=["new1", "new2", next(iter(tokens))], k=3).items
    assert {item.item_id for item in found} == {"new1", "new2", next(iter(tokens))}
    assert np.isfinite([item.score for item in found]).all()

    assert "red lamp new1" in (tmp_path / "new.jsonl").read_text()
    assert "'new1', 'new2' already" in fails(capsys, *command)
    assert gems_jax("items", "remove", "new1", "new2", "--workdir", run) == 0
    said = fails(capsys, *bring(tmp_path, run, {"new1": free[2], "new2": free[1]}))
    assert f"'new1' comes back under its own identifier {''.join(free[0])}" in said
    said = fails(capsys, *bring(tmp_path, run, {"new3": free[0]}))
    assert "of item 'new1': no two items may share one, removed items keep theirs" in said
    bring(tmp_path, run, {"new1": free[0], "new2": free[1]})
    assert gems_jax("items", "add", tmp_path / "new.jsonl", "--workdir", run) == 0
    assert "brought back 2 (new1, new2)" in capsys.readouterr().out
    again = gj.Recommender(run).search("red lamp", allow=["new1", "new2", next(iter(tokens))], k=3).items
    assert again == found


def test_identifiers_that_the_model_knows_nothing_of_are_refused(own, tmp_path, capsys):
    run, tokens = own
    last = f"<a_{(len(tokens) - 1) // 7}>"
    taken = next(iter(tokens))
    for identifier, why in (
        (["<a_99>", "<b_0>"], "has token <a_99> in place 1, where no item of the run had it"),
        (["<a_0>", "lamp"], "has token lamp in place 2"),
        (["<b_0>", "<a_0>"], "has token <b_0> in place 1"),
        (["<a_0>"], "has the identifier <a_0> of 1 tokens, and items of the run have 2"),
        (["<a_0>", "<b_0>", "<b_0>"], "of 3 tokens, and items of the run have 2"),
        (tokens[taken], f"of item {taken!r}: no two items may share one"),
        ([], "the identifier or one of its tokens is empty"),
    ):
        assert why in fails(capsys, *bring(tmp_path, run, {"new1": identifier}))
    same = {"new1": [last, "<b_6>"], "new2": [last, "<b_6>"]}
    assert f"item 'new2' has the identifier {last}<b_6> of item 'new1'" in fails(capsys, *bring(tmp_path, run, same))
    command = bring(tmp_path, run, {"new1": [last, "<b_6>"]})
    (tmp_path / "brought.json").write_text('{"else": ["<a_0>", "<b_0>"]}')
    assert "no identifier for 1 of the new items, such as 'new1'" in fails(capsys, *command)
    (tmp_path / "brought.json").write_text("[]")
    assert "must hold one JSON object" in fails(capsys, *command)
    assert "does not exist" in fails(capsys, *command[:4], tmp_path / "none.json", *command[5:])
    assert "is no path on this machine" in fails(capsys, *command[:4], "gs://shop/brought.json", *command[5:])
    assert "by --identifiers FILE" in fails(capsys, *command[:3], *command[5:])
    assert read_edits(run) is None


def test_where_files_are_reassigned_an_item_gets_a_free_last_code_beside_the_one_it_brings(prepared, tmp_path, capsys):
    # Pairs of items under 34 first tokens of ten and one of more: of most first tokens many last codes are free.
    words = ("--items.collisions", "reassign", "--items.path", tmp_path / "apart")
    run, tokens = train(prepared, tmp_path, lambda n: [f"<a_{min(n // 10, 34)}>", f"<b_{n // 2 % 5}>"], *words)
    ids = gj.identifiers.load(tmp_path / "apart")
    assert len(set(ids.tokens())) == len(tokens)
    shared = ids.tokens()[0]
    assert "has token <b_99> in place 2" in fails(capsys, *bring(tmp_path, run, {"new1": [shared[0], "<b_99>"]}))
    assert "of 1 tokens" in fails(capsys, *bring(tmp_path, run, {"new1": [shared[0]]}))
    free = next(f"<b_{n}>" for n in range(20) if (shared[0], f"<b_{n}>") not in ids.tokens())
    capsys.readouterr()
    assert gems_jax(*bring(tmp_path, run, {"new1": list(shared), "new2": [shared[0], free]})) == 0
    said = capsys.readouterr().out
    assert "have other codes than those in --identifiers, which other items have" in said
    added = [one.tokens for one in read_edits(run).added()]
    assert {first for first, _ in added} == {shared[0]}
    assert len({*added, *ids.tokens()}) == len(tokens) + 2
    found = gj.Recommender(run).search("red lamp", allow=["new1", "new2"]).items
    assert {item.item_id for item in found} == {"new1", "new2"}
