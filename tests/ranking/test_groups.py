"""Items that share an identifier: one score, a stated order, metrics that are means over all orders of what ties."""

import itertools
import json

import numpy as np
import pytest
import shop
from hypothesis import given
from hypothesis import strategies as st

import gems_jax as gj
from gems_jax.data.dataset.tables import Row, Table
from gems_jax.evaluation.evaluate import evaluate_ranking, load_rankings
from gems_jax.evaluation.paired import metric_of_rows
from gems_jax.evaluation.ranking_summary import summarise
from gems_jax.items.tokens import ItemIndex, add_identifier_tokens, index_identifiers, load_item_identifiers
from gems_jax.ranking import metrics
from gems_jax.ranking.groups import groups_of
from gems_jax.ranking.ties import expected, ties_of
from gems_jax.serving.engine import Engine
from gems_jax.serving.requests import Request

NAMES = ("hit", "ndcg", "mrr", "map")
# Items 0, 3 and 7 share one identifier, 2 and 9 another.
SHARED = [*shop.IDENTIFIERS]
SHARED[3] = SHARED[7] = SHARED[0]
SHARED[9] = SHARED[2]


def over_all_orders(ranked, target, group_of, k):
    """By brute force: each metric's mean over all orders of the items that tie, group by group."""
    groups = [list(some) for _, some in itertools.groupby(ranked, key=lambda item: group_of[item])]
    orders = itertools.product(*(itertools.permutations(some) for some in groups))
    rows = np.array([list(itertools.chain(*order)) for order in orders])
    relevance = (rows == target).astype(int)
    return {name: getattr(metrics, name)(relevance, np.ones(len(rows), int), k).mean() for name in NAMES}


def shares(group_of, removed=frozenset()):
    """Items of which those of a group have one identifier."""
    return ItemIndex(np.asarray(group_of)[:, None], frozenset(removed), shared=True)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(0, 99), st.integers(1, 8), st.integers(1, 4))
def test_a_metric_is_the_mean_over_all_orders_of_what_ties(sizes, seed, k, width):
    rng = np.random.default_rng(seed)
    group_of = np.repeat(np.arange(len(sizes)), sizes)
    found = rng.permutation(len(sizes))[:width]
    ranked = [item for group in found for item in np.flatnonzero(group_of == group).tolist()]
    target = int(rng.integers(len(group_of)))
    wanted = over_all_orders(ranked, target, group_of, k)
    ties = ties_of(found[None], np.array([target]), groups_of(shares(group_of)), None)
    for name in NAMES:
        assert expected(name, *ties, k)[0] == pytest.approx(wanted[name], abs=1e-12)


def test_without_ties_the_numbers_are_the_usual_ones():
    rng = np.random.default_rng(0)
    ranked = np.stack([rng.permutation(30)[:20] for _ in range(40)])
    table = Table.from_rows("rec", [Row(f"u{n % 7}", [0], int(rng.integers(30))) for n in range(40)])
    ties = ties_of(ranked, table.target, groups_of(shares(np.arange(30))), None)
    plain, tied = summarise(table, ranked, samples=5), summarise(table, ranked, samples=5, ties=ties)
    assert tied.pop("tied") == 1
    assert plain.keys() == tied.keys()
    for name, value in plain.items():
        assert np.allclose(value, tied[name], atol=1e-12), name


def test_removed_items_and_candidates_count_as_they_were_ranked():
    groups, found = groups_of(shares([0, 0, 0, 1], removed={2})), np.array([[0, 1], [0, -1]])
    assert ties_of(found, np.array([0, 3]), groups, None) == (pytest.approx([0, -1]), pytest.approx([2, 1]))
    # Candidates are ranked whether they were removed or not.
    among = ties_of(found, np.array([3, 2]), groups, np.array([[3, 0, 2, -1], [2, 0, 1, 3]]))
    assert among == (pytest.approx([2, 0]), pytest.approx([1, 3]))
    # A target that was removed is not found, though others of its identifier are.
    gone = ties_of(found, np.array([2, 2]), groups, None)
    assert gone == (pytest.approx([-1, -1]), pytest.approx([1, 1]))
    assert expected("hit", *gone, 3).tolist() == [0.0, 0.0]


def test_rows_that_are_measured_apart_are_corrected_too():
    groups, target = groups_of(shares([0, 0, 1, 2, 2, 2])), np.array([0, 2, 4, 1])
    found = np.array([[0, 1, 2], [2, 1, 0], [0, 2, 1], [1, 2, 0]])
    table = Table.from_rows("rec", [Row(f"u{n}", [3], int(item)) for n, item in enumerate(target)])
    ties, new = ties_of(found, target, groups, None), np.array([True, False, True, False])
    ranked, _ = groups.listed(found, np.zeros((4, 3)), None, 5)
    apart = summarise(table, ranked, samples=0, ties=ties, new=new)["new_transition"]
    wanted = [over_all_orders([0, 1, 2, 3, 4, 5], 0, groups.group_of, 5)["ndcg"]]
    wanted += [over_all_orders([0, 1, 3, 4, 5, 2], 4, groups.group_of, 5)["ndcg"]]
    assert apart["ndcg@5"] == pytest.approx(np.mean(wanted))
    assert apart["rows"] == 2


@pytest.fixture(scope="module")
def shared():
    """A model, its tokenizer, and items of which some share identifiers."""
    tokenizer = shop.tokenizer()
    items = add_identifier_tokens(tokenizer, SHARED, shared=True)
    return shop.t5(len(tokenizer) - len(shop.WORDS)), tokenizer, items


def test_items_of_an_identifier_have_its_score_and_stand_in_the_order_of_their_numbers(shared):
    model, _, items = shared
    inputs = {"input_ids": np.array([[4, 5, 1], [5, 4, 1]])}
    ids, scores = map(np.asarray, gj.rank_items(model, inputs, items, k=12, beams=12))
    distinct = sorted(set(SHARED))
    alone = ItemIndex(np.unique(items.token_ids, axis=0))
    names = [distinct.index(identifier) for identifier in SHARED]
    place = [int(np.flatnonzero((alone.token_ids == row).all(1))[0]) for row in items.token_ids]
    groups, values = map(np.asarray, gj.rank_items(model, inputs, alone, k=len(distinct), beams=12))
    for row in range(2):
        wanted = [item for group in groups[row] for item in range(12) if place[item] == group]
        assert ids[row].tolist() == wanted
        score_of = dict(zip(groups[row].tolist(), values[row].tolist(), strict=True))
        np.testing.assert_allclose(scores[row], [score_of[place[item]] for item in wanted], atol=1e-5)
    assert len(set(names)) == len(distinct) == 9
    few, some = map(np.asarray, gj.rank_items(model, inputs, items, np.array([[7, 5, 0], [9, 7, -1]]), k=4, beams=4))
    assert set(few[0].tolist()) == {0, 5, 7, -1}
    assert few[0].tolist().index(7) == few[0].tolist().index(0) + 1
    assert set(few[1].tolist()) == {7, 9, -1}
    assert np.isneginf(some[1, 2:]).all()
    less = ItemIndex(items.token_ids, frozenset({0, 2, 9}), shared=True)
    left = np.asarray(gj.rank_items(model, inputs, less, k=12, beams=12)[0])
    assert set(left[0].tolist()) == {1, 3, 4, 5, 6, 7, 8, 10, 11, -1}


def test_answers_allow_and_deny_single_items_of_an_identifier(shared):
    model, tokenizer, items = shared
    engine = Engine(model, tokenizer, shop.dataset(), items, shop.TEMPLATES, 20, beams=12, batch_size=3)

    def found(**asked):
        return [item.item_id for item in engine.rank([Request.of({"query": "red", "k": 12} | asked)])[0].items]

    everything = found(history=["B1"])
    assert len(everything) == 12
    start = everything.index("B0")
    assert everything[start : start + 3] == ["B0", "B3", "B7"]
    assert found(history=["B1"], deny=["B3", "B2", "B9"]) == [i for i in everything if i not in ("B3", "B2", "B9")]
    assert set(found(history=["B1"], allow=["B7", "B9", "B5"])) == {"B7", "B9", "B5"}
    assert found(history=["B1"], k=2) == everything[:2]
    # A cut within an identifier is told.
    cut = engine.rank([Request.of({"query": "red", "history": ["B1"], "k": start + 1})])[0]
    assert cut.items[-1].item_id == "B0"
    assert cut.notes == (
        "2 more items have the identifier and score of the last one: they come later in the catalogue",
    )
    whole = engine.rank([Request.of({"query": "red", "history": ["B1"], "k": start + 3})])[0]
    assert len({item.score for item in whole.items[start:]}) == 1
    assert whole.notes == ()


def test_an_evaluation_is_corrected_for_ties_in_its_file_of_rankings_too(shared, tmp_path):
    from gems_jax.data.batching.prompts import encode_table

    model, tokenizer, items = shared
    rows = [Row("ann", [4], 3, negatives=[0, 5, 7, 6, 8]), Row("bob", [1], 9, negatives=[2, 5, 1, 0, 3])]
    table = Table.from_rows("rec", rows)
    encoded = encode_table(table, tokenizer, items, shop.TEMPLATES["rec"], 20, "encoder_decoder")
    found = evaluate_ranking(model, items, {"rec": table}, {"rec": encoded}, samples=0, save_to=tmp_path)["rec"]
    kept = load_rankings(tmp_path / "ranking_rec.npz")
    group_of = np.array([SHARED.index(identifier) for identifier in SHARED])
    wanted = []
    for row in range(2):
        ranked = [item for item in kept["items"][row].tolist() if item >= 0]
        wanted.append(over_all_orders(ranked, int(table.target[row]), group_of, 5)["ndcg"])
    assert found["ndcg@5"] == found["released_ndcg@5"] == pytest.approx(np.mean(wanted))
    np.testing.assert_allclose(metric_of_rows(kept, "ndcg@5"), wanted)
    assert kept["tied"].tolist() == [3, 2]
    assert found["tied"] == 2.5
    assert found["off_beam"] == 0


def test_a_target_whose_identifier_is_found_is_on_the_beam_even_if_its_place_is_beyond_what_is_kept(shared):
    from gems_jax.data.batching.prompts import encode_table

    model, tokenizer, items = shared
    table = Table.from_rows("rec", [Row("ann", [4], target) for target in range(12)])
    encoded = {"rec": encode_table(table, tokenizer, items, shop.TEMPLATES["rec"], 20, "encoder_decoder")}
    found = evaluate_ranking(model, items, {"rec": table}, encoded, k=5, beams=5, samples=0)["rec"]
    inputs = {"input_ids": encoded["rec"].tokens_of(0)[None]}
    groups, _ = gj.rank_items(model, inputs, groups_of(items).index, k=5, beams=5)
    on_beam = np.isin(groups_of(items).group_of, np.asarray(groups)[0])
    assert found["off_beam"] == pytest.approx(1 - on_beam.mean())
    assert found["hit@5"] == pytest.approx(5 / 12)
    assert on_beam.mean() > found["hit@5"]


def test_a_file_whose_items_share_identifiers_is_read_where_that_is_asked_for(tmp_path):
    path = tmp_path / "shared.json"
    path.write_text(json.dumps({"a": ["<x>", "<y>"], "b": ["<x>", "<y>"], "c": "<x>"}))
    with pytest.raises(ValueError, match="2 items share.*collisions to reassign.*or to group"):
        load_item_identifiers(path, ["a", "b", "c"])
    tokens = load_item_identifiers(path, ["a", "b", "c"], shared=True)
    assert tokens == [("<x>", "<y>"), ("<x>", "<y>"), ("<x>",)]
    tokenizer = shop.tokenizer()
    items = add_identifier_tokens(tokenizer, tokens, shared=True)
    assert (index_identifiers(tokenizer, tokens, shared=True).token_ids == items.token_ids).all()
    with pytest.raises(ValueError, match="have the same tokens"):
        index_identifiers(tokenizer, tokens)
