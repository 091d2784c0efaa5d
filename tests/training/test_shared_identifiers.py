"""A run whose items share identifiers, by its commands: tuned, evaluated, asked, exported, its catalogue edited.

About half a minute of CPU: a tuned run is the only place where tokens, numbers of items and files meet.
"""

import itertools
import json

import numpy as np
import pytest
from identified import RUN
from tiny import Made, documented_program, fails, gems_jax, options, read, say

import gems_jax as gj
from gems_jax.evaluation.evaluate import load_rankings
from gems_jax.ranking import metrics
from gems_jax.training.stages import ensure_data


@pytest.fixture(scope="module")
def tuned(prepared, tmp_path_factory):
    """A run of two steps, three items an identifier and six of one, evaluated and exported; and the identifiers."""
    root, said = tmp_path_factory.mktemp("shared"), {}
    places = {"model__path": prepared.root / "base", "data__dir": prepared.root / "data"}
    ids = ensure_data(read("train", *options(root, **places), "--workdir", "x")).item_ids()
    places_of = [min(n, len(ids) - 4) for n in range(len(ids))]
    tokens = {item_id: [f"<a_{n // 12}>", f"<b_{n // 3 % 4}>"] for n, item_id in zip(places_of, ids, strict=True)}
    (root / "published.json").write_text(json.dumps(tokens))
    argv = options(root, **places, **RUN, items__identifiers=root / "published.json", items__max_length=48)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENBLAS_NUM_THREADS", "1")
        say(said, "train", *argv, "--items.collisions", "group", "--workdir", root / "run")
        say(said, "evaluate", "--workdir", root / "run")
        say(said, "export", "--workdir", root / "run", "--out", root / "out")
    return Made(root, said), {item_id: tuple(each) for item_id, each in tokens.items()}


def over_orders(items, target, names, k):
    """ndcg of a ranking's items, the mean over all orders of those that have the target's identifier."""
    own = [place for place, item in enumerate(items) if names[item] == names[target]]
    rows = []
    for order in itertools.permutations(own):
        row = list(items)
        for place, other in zip(own, order, strict=True):
            row[place] = items[other]
        rows.append([int(item == target) for item in row])
    return metrics.ndcg(rows, np.ones(len(rows), int), k).mean()


def test_the_evaluation_is_the_mean_over_all_orders_of_what_ties_and_says_so(tuned):
    made, tokens = tuned
    evaluation = json.loads((made.root / "run" / "eval.json").read_text())
    names = list(tokens.values())
    sizes = np.array([names.count(name) for name in set(names)])
    assert evaluation["shared"] == {"items": sizes[sizes > 1].sum(), "identifiers": (sizes > 1).sum()}
    notice = f"items share {(sizes > 1).sum()} identifiers: metrics of this run are means over all orders"
    assert notice in made.said["evaluate"]
    assert notice in (made.root / "run" / "report.html").read_text()
    for folder, place in (("", evaluation), ("catalogue", evaluation["catalogue"])):
        for task in ("rec", "src"):
            kept = load_rankings(made.root / "run" / folder / f"ranking_{task}.npz")
            rows = [[item for item in row if item >= 0] for row in kept["items"].tolist()]
            pairs = zip(rows, kept["target"].tolist(), strict=True)
            wanted = [over_orders(row, item, names, 10) for row, item in pairs]
            assert place[task]["ndcg@10"] == pytest.approx(np.mean(wanted), abs=1e-9)
            # Items of an identifier stand together, by their numbers, with one score.
            for row, scores in zip(rows, kept["scores"], strict=True):
                runs = [list(some) for _, some in itertools.groupby(row, key=names.__getitem__)]
                assert len(runs) == len({names[item] for item in row})
                assert all(some == sorted(some) for some in runs)
                assert len(set(scores[: len(row)].tolist())) <= len(runs)
        assert place["rec"]["tied"] >= 1
    assert evaluation["catalogue"]["rec"]["tied"] > 2


def test_answers_have_all_items_of_an_identifier_and_tell_of_those_that_are_cut_off(tuned, tmp_path):
    made, tokens = tuned
    asked = [{"id": f"q{k}", "task": "src", "query": "lamp", "k": k} for k in (3, 4)]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(line) + "\n" for line in asked))
    files = ("--requests", tmp_path / "asked.jsonl", "--out", tmp_path / "answers.jsonl")
    assert gems_jax("predict", "--workdir", made.root / "run", *files) == 0
    three, four = (json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines())
    assert len({tokens[item["item_id"]] for item in three["items"]}) == 1
    assert len({item["score"] for item in three["items"]}) == 1
    assert three["notes"] == []
    assert four["items"][:3] == three["items"]
    assert tokens[four["items"][3]["item_id"]] != tokens[four["items"][2]["item_id"]]
    assert four["notes"] == [
        "2 more items have the identifier and score of the last one: they come later in the catalogue"
    ]


def test_an_exported_folder_ranks_as_the_run_does(tuned):
    made, tokens = tuned
    asked = documented_program(made.root / "out")
    ids = list(tokens)
    theirs = asked["rank"](made.root / "out", "src", [ids[4]], "lamp", k=20)
    # The program scores all items: as a search does that loses none on the way.
    wide = gj.Recommender(made.root / "run", beams=len(ids))
    ours = wide.search("lamp", history=[ids[4]], k=len(ids)).items
    score_of = {item.item_id: item.score for item in ours}
    # Identifiers whose scores differ by rounding alone may stand in either order.
    np.testing.assert_allclose([score_of[item] for item in theirs], [item.score for item in ours[:20]], atol=1e-4)
    assert len(set(theirs)) == 20
    trie = dict(np.load(made.root / "out" / "trie.npz", allow_pickle=False))
    firsts = sorted(trie["item"][trie["item"] >= 0].tolist())
    assert firsts == list(range(0, len(ids) - 3, 3))


def test_items_come_to_an_identifier_and_go_from_it(tuned, tmp_path, capsys):
    made, tokens = tuned
    run, ids = made.root / "run", list(tokens)
    before = json.loads((run / "eval.json").read_text())
    best = [item.item_id for item in gj.Recommender(run).search("lamp", k=3).items]
    new, names = tmp_path / "new.jsonl", tmp_path / "new_identifiers.json"
    new.write_text("".join(json.dumps({"item_id": f"new{n}", "title": f"lamp {n}"}) + "\n" for n in range(3)))

    def brought(*identifiers):
        names.write_text(json.dumps({f"new{n}": identifier for n, identifier in enumerate(identifiers)}))
        return ("items", "add", new, "--identifiers", names, "--workdir", run)

    own = list(tokens[best[0]])
    assert "has token <a_99> in place 1, where no item of the run had it" in fails(
        capsys, *brought(own, ["<a_99>", "<b_0>"], own)
    )
    try:
        # Two beside items that are there, one whose identifier no item has.
        last = f"<a_{(len(ids) - 1) // 12}>", f"<b_{(len(ids) - 1) // 3 % 4}>"
        assert last not in tokens.values()
        assert gems_jax(*brought(own, own, list(last))) == 0
        recommender = gj.Recommender(run)
        found = recommender.search("lamp", k=5)
        assert [item.item_id for item in found.items] == [*best, "new0", "new1"]
        assert len({item.score for item in found.items}) == 1
        assert found.notes == ()
        assert {item.item_id for item in recommender.search("lamp", allow=["new2", "new1"]).items} == {"new1", "new2"}
        left = [item.item_id for item in recommender.search("lamp", deny=[best[1], "new0"], k=3).items]
        assert left == [best[0], best[2], "new1"]
        assert gems_jax("items", "remove", best[0], "new1", "--workdir", run) == 0
        assert [item.item_id for item in gj.Recommender(run).search("lamp", k=3).items] == [*best[1:], "new0"]
        assert gems_jax("items", "remove", *best[1:], "new0", "--workdir", run) == 0
        # Rows with candidates of their own are what they were; of the catalogue what was removed is not found.
        say(made.said, "evaluate", "--workdir", run)
        after = json.loads((run / "eval.json").read_text())
        assert after["rec"] == before["rec"]
        assert after["catalogue"]["rec"]["candidates"] == len(ids) - 2
        kept = load_rankings(run / "catalogue" / "ranking_rec.npz")
        gone = [*(ids.index(one) for one in best), len(ids), len(ids) + 1]
        assert not np.isin(kept["items"], gone).any()
        assert (kept["ahead"][np.isin(kept["target"], gone)] == -1).all()
    finally:
        while (run / "catalogue_edits.json").exists():
            assert gems_jax("items", "undo", "--workdir", run) == 0
