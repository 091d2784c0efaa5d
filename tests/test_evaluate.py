"""Evaluation of whole tables: what is measured, what is kept of each row, and that ties help nobody."""

from pathlib import Path

import jax
import numpy as np
import pytest

from gems_jax.data.prompts import EncodedTable
from gems_jax.data.tables import Row, Table
from gems_jax.evaluation.evaluate import evaluate_ranking, load_rankings, rank_table
from gems_jax.evaluation.examples import readable_examples
from gems_jax.evaluation.summary import evaluate_scores, shuffled_candidates, summarise
from gems_jax.items import ItemIndex
from gems_jax.models import T5, T5Config

V, N = 20, 30


@pytest.fixture(scope="module")
def model() -> T5:
    config = T5Config(
        vocab_size=V,
        num_added_tokens=N,
        d_model=8,
        d_kv=4,
        d_ff=16,
        num_layers=1,
        num_decoder_layers=1,
        num_heads=2,
    )
    return T5.create(config, jax.random.key(0))


@pytest.fixture(scope="module")
def items() -> ItemIndex:
    return ItemIndex(V + np.arange(N, dtype=np.int32)[:, None])


def make_table(rows: int = 11, negatives: bool = True, task: str = "rec") -> Table:
    rng = np.random.default_rng(0)
    made = []
    for row in range(rows):
        order = rng.permutation(N).tolist()
        made.append(Row(f"user {row // 2}", order[:3], order[3], negatives=order[4:16] if negatives else None))
    return Table.from_rows(task, made)


def make_encoded(table: Table) -> EncodedTable:
    inputs = [[V + int(item) for item in table.history_of(row)] + [1] for row in range(len(table))]
    return EncodedTable(
        task=table.task,
        tokens=np.asarray([token for tokens in inputs for token in tokens], np.int32),
        offsets=np.cumsum([0, *map(len, inputs)]),
        target_tokens=(V + table.target).astype(np.int32),
    )


def test_rankings_hold_each_rows_candidates_and_do_not_depend_on_the_batch_size(model: T5, items: ItemIndex) -> None:
    table = make_table()
    ids, scores = rank_table(model, items, table, make_encoded(table), k=13, batch_size=4)
    other_ids, other_scores = rank_table(model, items, table, make_encoded(table), k=13, batch_size=50)
    np.testing.assert_array_equal(ids, other_ids)
    np.testing.assert_allclose(scores, other_scores, atol=1e-5)
    np.testing.assert_array_equal(np.sort(ids, 1), np.sort(table.candidates(), 1))
    assert (np.diff(scores, axis=1) <= 0).all()


def test_table_without_negatives_is_ranked_against_the_whole_catalogue(model: T5, items: ItemIndex) -> None:
    table = make_table(4, negatives=False)
    ids, _ = rank_table(model, items, table, make_encoded(table), k=N, beams=N)
    assert (np.sort(ids, 1) == np.arange(N)).all()


def test_evaluation_keeps_what_was_found_in_each_row(tmp_path: Path, model: T5, items: ItemIndex) -> None:
    tables = {"rec": make_table(), "src": make_table(7, task="src")}
    encoded = {task: make_encoded(table) for task, table in tables.items()}
    results = evaluate_ranking(model, items, tables, encoded, samples=50, save_to=tmp_path / "rankings")
    assert list(results) == ["rec", "src"]
    assert sorted(path.name for path in (tmp_path / "rankings").iterdir()) == [
        "ranking_rec.npz",
        "ranking_src.npz",
    ]
    kept = load_rankings(tmp_path / "rankings" / "ranking_rec.npz")
    rank = kept["rank"]
    assert kept["user_ids"].tolist() == tables["rec"].user_ids
    assert (kept["target"] == tables["rec"].target).all()
    assert ((kept["items"] == kept["target"][:, None]).argmax(1) + 1 == rank).all()
    found = results["rec"]
    assert found["hit@10"] == pytest.approx(((rank >= 1) & (rank <= 10)).mean())
    assert found["mrr@10"] == pytest.approx(np.where((rank >= 1) & (rank <= 10), 1 / np.maximum(rank, 1), 0).mean())
    low, high = found["hit@10_ci"]
    assert low <= found["hit@10"] <= high
    assert (found["rows"], found["users"]) == (11, 6)


def test_ties_between_candidates_favour_nobody() -> None:
    rows = [Row(f"u{row}", [0], 1, negatives=list(range(2, 22))) for row in range(2000)]
    table = Table.from_rows("rec", rows)
    result = evaluate_scores(table, np.zeros((2000, 21)), samples=0)
    assert result["hit@10"] == pytest.approx(10 / 21, abs=0.04)
    assert result == evaluate_scores(table, np.zeros((2000, 21)), samples=0)
    assert result != evaluate_scores(table, np.zeros((2000, 21)), samples=0, seed=1)


def test_shuffled_candidates_are_permutations_of_their_own() -> None:
    order = shuffled_candidates(make_table(), 0)
    assert (np.sort(order, 1) == np.arange(13)).all()
    assert len({tuple(row) for row in order.tolist()}) == 11


def test_scored_candidates_are_ranked_by_score() -> None:
    table = make_table()
    scores = np.zeros((11, 13))
    scores[:, 0] = -1.0
    assert evaluate_scores(table, scores, samples=0)["hit@10"] == 0.0
    scores[:, 0] = 1.0
    result = evaluate_scores(table, scores, samples=20)
    assert result["ndcg@10"] == 1.0
    assert result["ndcg@10_ci"] == [1.0, 1.0]


def test_examples_are_readable_and_repeatable() -> None:
    table = make_table()
    titles = [f"Title {item}" for item in range(N)]
    ids = table.candidates()[:, ::-1]
    scores = np.tile(-np.arange(13.0), (11, 1))
    examples = readable_examples(table, ids, scores, titles, count=2)
    assert examples == readable_examples(table, ids, scores, titles, count=2)
    assert len(examples) == 2
    assert [len(example["top"]) for example in examples] == [5, 5]
    for example in examples:
        assert all(item["hit"] == (item["title"] == example["target"]) for item in example["top"])


def test_bad_input_is_named(model: T5, items: ItemIndex) -> None:
    table = make_table()
    with pytest.raises(ValueError, match="11 rows and its tokens 4"):
        rank_table(model, items, table, make_encoded(make_table(4)))
    with pytest.raises(ValueError, match=r"tables of tasks \['rec'\].*\['src'\]|rec.*src"):
        evaluate_ranking(model, items, {"rec": table}, {"src": make_encoded(table)})
    with pytest.raises(FileNotFoundError, match="evaluate the run first"):
        load_rankings("nowhere.npz")
    with pytest.raises(ValueError, match="3 rankings for 11 rows"):
        summarise(table, np.zeros((3, 5), int))
    with pytest.raises(ValueError, match="one score a candidate"):
        evaluate_scores(table, np.zeros((11, 12)))
    with pytest.raises(ValueError, match="row 2 has a score"):
        evaluate_scores(table, np.where(np.arange(11)[:, None] == 2, np.nan, np.zeros((11, 13))))
