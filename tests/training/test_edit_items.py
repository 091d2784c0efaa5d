"""The catalogue of a tuned run changes without training: added, removed, undone, killed, refused.

About a minute of CPU: it tunes a run, and each edit is seen through a model that is loaded as its users load it.
"""

import json
import shlex
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from documented import blocks
from identified import RUN, identified_options
from tiny import Made, documented_program, everything_in, fails, gems_jax, options, read, say

import gems_jax as gj
from gems_jax.data.dataset.tables import Item, Row, Table
from gems_jax.identifiers.text_embeddings import text_embeddings
from gems_jax.items.tokens import ItemIndex
from gems_jax.ranking.trie import build_trie
from gems_jax.serving.recommender import config_of_run
from gems_jax.training.edit_items import add_items, remove_items
from gems_jax.training.tuned import load_run
from gems_jax.training.workdir.assets import AssetRecord, item_digest, read_record, write_record
from gems_jax.training.workdir.edits import NAME, CatalogueEdits, Edit, NewItem, read_edits, write_edits
from gems_jax.training.workdir.lock import WorkdirLock

NEW = [
    {"item_id": "new1", "title": "red copper lamp", "text": "for a desk"},
    {"item_id": "new2", "title": "red copper lamp", "text": "for a desk"},
    {"item_id": "new3", "title": "oak chair"},
]


@pytest.fixture(scope="module")
def tuned(prepared, tmp_path_factory):
    """A run of two steps whose items share tokens."""
    root, said = tmp_path_factory.mktemp("edited"), {}
    argv = identified_options(prepared, root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENBLAS_NUM_THREADS", "1")
        say(said, "train", *argv, "--workdir", root / "run")
    return Made(root, said)


@pytest.fixture
def run(tuned, tmp_path):
    """A copy of the run, to be edited."""
    shutil.copytree(tuned.root / "run", tmp_path / "run")
    return tmp_path / "run"


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def items(*argv, workdir):
    return gems_jax("items", *argv, "--workdir", workdir)


def names_of(run):
    """Ids of the items that the run was tuned with."""
    return list(read_record(run).items)


def contents(folder):
    return {name: (folder / name).read_bytes() for name in everything_in(folder) if (folder / name).is_file()}


def test_added_items_are_ranked_as_if_they_had_always_had_their_codes(run, tmp_path, capsys):
    count = len(names_of(run))
    assert items("add", write(tmp_path / "new.jsonl", NEW), workdir=run) == 0
    said = capsys.readouterr().out
    assert "added 3 (new1, new2, new3)  from new.jsonl" in said
    assert "catalogue edited: +3 -0 items since training" in said
    loaded = load_run(config_of_run(run), run)
    assert "catalogue edited: +3 -0 items since training" in capsys.readouterr().out
    now, ids = loaded.assets, gj.identifiers.load(config_of_run(run).items.path)
    tokens = [tuple(now.tokenizer.convert_ids_to_tokens(row)) for row in now.items.token_ids.tolist()]
    assert tokens[:count] == ids.tokens()
    assert now.dataset.items[count:] == [Item(row["item_id"], row["title"], row.get("text", "")) for row in NEW]
    # Equal texts have the same nearest codes: one of the two has others.
    assert len(set(tokens)) == count + 3
    # The codes by hand: of the embedding of the text, level by level.
    embeddings = text_embeddings(loaded.base, now.tokenizer, [item.search_text for item in now.dataset.items[count:]])
    nearest = gj.identifiers.Identifiers(ids.assign(embeddings), level_names=ids.level_names).tokens()
    for given, near in zip(tokens[count:], nearest, strict=True):
        assert given == near or near in tokens[:count] or nearest.count(near) > 1
    # As if they had been there from the start: the plain search over an index that has them.
    recommender = gj.Recommender(run)
    assert recommender.edited == "catalogue edited: +3 -0 items since training"
    table = Table.from_rows("src", [Row("ann", [count, count + 2], 0, query="copper lamp")])
    encoded = now.encode(config_of_run(run), table)
    inputs = {"input_ids": encoded.tokens_of(0)[None]}
    items_there = ItemIndex(now.items.token_ids)
    numbers, scores = gj.rank_items(loaded.model, inputs, items_there, k=20, beams=20, vocabulary="items")
    answer = recommender.search("copper lamp", history=["new1", "new3"], k=20)
    names = now.dataset.item_ids()
    assert [item.item_id for item in answer.items] == [names[number] for number in np.asarray(numbers)[0]]
    np.testing.assert_allclose([item.score for item in answer.items], np.asarray(scores)[0], atol=1e-5)
    alone = recommender.search("copper lamp", allow=["new1", "new2", "new3"], k=3)
    assert {item.item_id for item in alone.items} == {"new1", "new2", "new3"}


def test_the_commands_of_the_page_on_identifiers_edit_a_run_in_their_order(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "new.jsonl", NEW)
    lines = [line for block in blocks() if block.page == "docs/identifiers.md" for line in block.text.splitlines()]
    shown = [line for line in lines if line.startswith("gems-jax items ")]
    said = []
    for words in shown:
        *argv, option, workdir = shlex.split(words)[1:]
        assert (option, workdir) == ("--workdir", "runs/demo_codes/gems")
        assert gems_jax(*argv, option, run) == 0
        said.append(capsys.readouterr().out)
    assert [words.split()[2] for words in shown] == ["add", "remove", "list", "undo"]
    edited = ["+3 -0", "+3 -2", "+3 -2", "+3 -0"]
    for text, counts in zip(said, edited, strict=True):
        assert f"catalogue edited: {counts} items since training" in text


def test_removed_items_are_known_and_never_in_an_answer(run, tmp_path, capsys):
    names = names_of(run)
    first = [item.item_id for item in gj.Recommender(run, beams=4).search("lamp", k=3).items]
    (tmp_path / "ids.txt").write_text(f"{first[1]}\n\n{first[2]}\n")
    assert items("add", write(tmp_path / "new.jsonl", NEW), workdir=run) == 0
    assert items("remove", first[0], "new2", "--ids", tmp_path / "ids.txt", workdir=run) == 0
    assert "catalogue edited: +2 -3 items since training" in capsys.readouterr().out
    gone = {*first, "new2"}
    recommender = gj.Recommender(run, beams=4)
    for history in ([], first, ["new1", "new2"]):
        found = recommender.search("lamp", history=history, k=4).items
        found += recommender.recommend(history=[*history, names[0]], deny=[first[0], "new2"], k=4).items
        assert gone.isdisjoint(item.item_id for item in found)
        assert len(found) == 8
    with pytest.raises(ValueError, match="was removed from the catalogue"):
        recommender.search("lamp", allow=[first[0], names[-1]])
    # An item comes back under its own codes, and no other way.
    assert items("add", write(tmp_path / "back.jsonl", NEW[1:2]), workdir=run) == 0
    assert "brought back 1 (new2)" in capsys.readouterr().out
    other = write(tmp_path / "other.jsonl", [{"item_id": first[0], "title": "another thing"}])
    assert "with another title or text" in fails(capsys, "items", "add", other, "--workdir", run)
    assert "'new2' already" in fails(capsys, "items", "add", tmp_path / "back.jsonl", "--workdir", run)
    assert "removed already" in fails(capsys, "items", "remove", first[0], "--workdir", run)
    assert "has no item 'x'" in fails(capsys, "items", "remove", "x", "--workdir", run)
    left = [name for name in [*names, "new1", "new2", "new3"] if name not in first]
    assert "one at least must stay" in fails(capsys, "items", "remove", *left, "--workdir", run)


def test_undo_brings_back_the_bytes_step_by_step(run, tmp_path, capsys):
    steps = [contents(run)]
    name = names_of(run)[4]
    for words in (["add", write(tmp_path / "n.jsonl", NEW)], ["remove", name, "new1"], ["remove", "new3"]):
        assert items(*words, workdir=run) == 0
        steps.append(contents(run))
    capsys.readouterr()
    assert items("list", workdir=run) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[1].split()[0] for line in lines[:3]] == ["added", "removed", "removed"]
    assert lines[3].startswith("catalogue edited: +1 -1 items since training")
    while len(steps) > 1:
        assert contents(run) == steps.pop()
        assert items("undo", workdir=run) == 0
    assert contents(run) == steps.pop()
    assert "the catalogue is that of training again" in capsys.readouterr().out
    assert "nothing to undo" in fails(capsys, "items", "undo", "--workdir", run)
    assert items("list", workdir=run) == 0
    assert "was not edited since training" in capsys.readouterr().out


def test_an_edit_that_fails_or_is_refused_leaves_what_was(run, tmp_path, capsys, monkeypatch):
    file, known = write(tmp_path / "n.jsonl", NEW), names_of(run)[0]
    before = contents(run)
    with WorkdirLock(run):
        for words in (["add", file], ["remove", known], ["undo"]):
            assert "is in use by process" in fails(capsys, "items", *words, "--workdir", run)
    with monkeypatch.context() as patch:
        patch.setattr("gems_jax.staging.os.replace", _full)
        assert "No space left on device" in fails(capsys, "items", "add", file, "--workdir", run)
    assert contents(run) == before
    write(tmp_path / "bad.jsonl", [*NEW, *({"item_id": f"b{n}", "title": ""} for n in range(2))])
    assert "2 times it has no title" in fails(capsys, "items", "add", tmp_path / "bad.jsonl", "--workdir", run)
    twice = write(tmp_path / "twice.jsonl", [NEW[0], {"item_id": known, "title": "lamp"}])
    assert f"the catalogue has {known!r} already" in fails(capsys, "items", "add", twice, "--workdir", run)
    assert "does not exist" in fails(capsys, "items", "add", tmp_path / "none.csv", "--workdir", run)
    assert "leave --identifiers out" in fails(capsys, "items", "add", file, "--identifiers", file, "--workdir", run)
    assert "items does 'change'?" in fails(capsys, "items", "change", "--workdir", run)
    assert "needs one FILE" in fails(capsys, "items", "add", "--workdir", run)
    assert "items undo takes no 'x'" in fails(capsys, "items", "undo", "x", "--workdir", run)
    assert "items undo takes no 'x'" in fails(capsys, "items", "undo", "x", "y", "--workdir", run)
    assert "items remove needs ids" in fails(capsys, "items", "remove", "--workdir", run)
    assert "items undo takes no --ids" in fails(capsys, "items", "undo", "--ids", "x", "--workdir", run)
    assert contents(run) == before
    # One bad row among many is left out, and told.
    rows = [*({"name": f"n{n}", "title": f"steel lamp {n}"} for n in range(25)), {"name": "b1", "title": ""}]
    columns = ["--columns", "{item_id: name}", "--max_bad_fraction", "0.05"]
    assert items("add", write(tmp_path / "some.jsonl", rows), *columns, workdir=run) == 0
    said = capsys.readouterr().out
    assert "added 25" in said
    assert "left out 1 rows (1: it has no title)" in said
    assert "left out: some.jsonl: row 26: it has no title" in said
    (run / NAME).write_text((run / NAME).read_text().replace("steel", "steal"))
    assert f"{NAME} is damaged" in fails(capsys, "items", "list", "--workdir", run)


def _full(*_):
    raise OSError(28, "No space left on device")


KILLED = """
import os, signal, sys
from pathlib import Path
import gems_jax.staging
from gems_jax.training.workdir.edits import CatalogueEdits, Edit, write_edits
gems_jax.staging.os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
edit = Edit("2026-11-30T00:00:00Z", removed=("B01",))
write_edits(CatalogueEdits("run", (edit, edit)), Path(sys.argv[1]))
"""


def test_a_kill_while_an_edit_is_written_leaves_the_one_before(tmp_path):
    edits = CatalogueEdits("run", (Edit("2026-11-30T00:00:00Z", added=(NewItem("a", "b", "", ("<c1_1>",)),)),))
    write_edits(edits, tmp_path)
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert read_edits(tmp_path) == edits


def test_items_with_a_token_each_can_go_but_not_come(prepared, tmp_path, capsys):
    argv = options(
        prepared.root, **RUN, data__dir=prepared.root / "data", null_space__path=prepared.root / "null_space"
    )
    config, new = read("train", *argv, "--workdir", "x"), str(write(tmp_path / "n.jsonl", NEW))
    with pytest.raises(ValueError, match="has no assets.json"):
        remove_items(tmp_path, ["item0001"])
    known = [Item("old1", "oak lamp"), Item("old2", "oak chair", "with arms")]
    digests = {item.item_id: item_digest(item) for item in known}
    write_record(AssetRecord(digests, {}, {}, "", {}, {}, None, spaces=True), tmp_path)
    with pytest.raises(ValueError, match="never trained.*items.identifiers: rkmeans"):
        add_items(config, tmp_path, new)
    with pytest.raises(ValueError, match="by tokens, of new items, too: leave --identifiers out"):
        add_items(config, tmp_path, new, identifiers=new)
    # What the run was tuned with comes back.
    remove_items(tmp_path, ["old2"])
    back = str(write(tmp_path / "back.jsonl", [vars(known[1])]))
    assert add_items(config, tmp_path, back).edits.counts() == (0, 0)


def test_an_evaluation_and_an_export_have_the_edited_catalogue_and_say_so(run, tmp_path):
    said, gone = {}, names_of(run)[:5]
    say(said, "evaluate", "--workdir", run)
    before = json.loads((run / "eval.json").read_text())
    assert items("add", write(tmp_path / "new.jsonl", NEW), workdir=run) == 0
    assert items("remove", *gone, workdir=run) == 0
    say(said, "evaluate", "--workdir", run)
    after = json.loads((run / "eval.json").read_text())
    notice = "catalogue edited: +3 -5 items since training"
    assert f"{notice}; " in said["evaluate"]
    assert "rows with candidates of their own are ranked as before" in said["evaluate"]
    assert notice in (run / "report.html").read_text()
    edited = after["edited"]
    assert (edited["added"], edited["removed"], edited["as_before"]) == (3, 5, ["rec", "src"])
    assert after["catalogue"]["rec"]["candidates"] == before["catalogue"]["rec"]["candidates"] + 3 - 5
    for task in ("rec", "src"):
        assert after[task] == before[task]
    say(said, "export", "--workdir", run, "--out", tmp_path / "out")
    assert notice in (tmp_path / "out" / "README.md").read_text()
    lines = [json.loads(line) for line in (tmp_path / "out" / "items.jsonl").read_text().splitlines()]
    assert [line["item_id"] for line in lines if line.get("removed")] == gone
    assert [line["item_id"] for line in lines[-3:]] == ["new1", "new2", "new3"]
    with np.load(tmp_path / "out" / "trie.npz", allow_pickle=False) as trie:
        ranked = sorted(trie["item"][trie["item"] >= 0].tolist())
    assert ranked == [number for number, line in enumerate(lines) if "removed" not in line]
    asked = documented_program(tmp_path / "out")
    found = asked["rank"](tmp_path / "out", "src", [gone[0], "new1"], "lamp", k=len(lines))
    assert set(found) == {line["item_id"] for line in lines} - set(gone)


def test_a_trie_without_removed_items_is_that_of_the_others():
    rng = np.random.default_rng(0)
    rows = np.array([[a, b, -1] for a in range(4) for b in range(5, 9)] + [[4, 5, 6]])[rng.permutation(17)]
    removed = frozenset(rng.permutation(17)[:6].tolist() + [int(np.flatnonzero(rows[:, 2] == 6)[0])])
    kept = [number for number in range(17) if number not in removed]
    trie, other = build_trie(ItemIndex(rows, removed)), build_trie(ItemIndex(rows[kept]))
    assert trie.degrees == other.degrees
    assert np.array_equal(trie.token, other.token)
    assert np.array_equal(trie.first_child, other.first_child)
    numbers = np.asarray(other.item)
    assert np.array_equal(trie.item, np.where(numbers >= 0, np.array(kept)[numbers], -1))
    with pytest.raises(ValueError, match="and not all"):
        ItemIndex(rows, frozenset(range(17)))
