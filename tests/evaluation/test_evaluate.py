"""Evaluation of whole tables: what is measured, what is kept of each row, and that ties help nobody."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rows_to_rank import N, V, make_encoded, make_table

from gems_jax.config.evaluate import EvaluateConfig
from gems_jax.config.run import Config
from gems_jax.data.dataset.tables import Dataset, Item, Row, Table
from gems_jax.evaluation import non_neural
from gems_jax.evaluation.bootstrap import bootstrap_interval
from gems_jax.evaluation.evaluate import evaluate_ranking, load_rankings, rank_table, save_rankings
from gems_jax.evaluation.ranked_examples import readable_examples
from gems_jax.evaluation.ranking_summary import evaluate_scores, shuffled_candidates, summarise
from gems_jax.items.tokens import ItemIndex
from gems_jax.models import T5, T5Config
from gems_jax.models.params import params_of
from gems_jax.training import evaluate_run
from gems_jax.training.evaluate_run import read_evaluation


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
    assert {"hit@20", "map@20_ci"} <= set(results["src"])
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


def test_every_metric_is_reported_at_every_cut_off_with_its_interval() -> None:
    rng = np.random.default_rng(1)
    table = make_table(40)
    ranked = np.stack([rng.permutation(N)[:20] for _ in range(40)])
    found = summarise(table, ranked, samples=100)
    hits = ranked == table.target[:, None]
    places = np.where(hits.any(1), hits.argmax(1) + 1, np.inf)
    by_hand = {
        "hit": np.ones(40),
        "ndcg": 1 / np.log2(1 + places),
        "mrr": 1 / places,
        "map": 1 / places,
    }
    for name, values in by_hand.items():
        for k in (5, 10, 20):
            of_rows = np.where(places <= k, values, 0.0)
            assert found[f"{name}@{k}"] == pytest.approx(of_rows.mean())
            expected = bootstrap_interval(of_rows, np.array(table.user_ids), samples=100)
            assert found[f"{name}@{k}_ci"] == pytest.approx(expected)
            assert found[f"released_{name}@{k}"] == pytest.approx(of_rows.mean())
    assert 0 < found["hit@5"] < found["hit@20"] < 1
    assert found["candidates"] == 13
    assert set(found) - {"rows", "users", "candidates"} == {
        f"{variant}{name}@{k}{end}"
        for name in by_hand
        for k in (5, 10, 20)
        for variant, end in (("", ""), ("", "_ci"), ("released_", ""))
    }


def test_cut_off_beyond_what_was_kept_is_left_out_rather_than_guessed() -> None:
    found = summarise(make_table(), make_table().candidates()[:, :10], samples=0)
    assert "hit@10" in found
    assert "hit@20" not in found
    with pytest.raises(ValueError, match="keep at least k=5"):
        summarise(make_table(), make_table().candidates()[:, :4])
    # A row with few candidates has nothing else to be ranked: that is known, not guessed.
    few = Table.from_rows("rec", [Row("u", [0], 1, negatives=[2, 3])])
    assert evaluate_scores(few, np.array([[0.0, 1.0, 2.0]]), samples=0)["mrr@20"] == pytest.approx(1 / 3)


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


@pytest.fixture
def measured_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], dict[str, Any]]:
    """``evaluate`` of a run whose model has been ranked already, against so many negatives alone."""

    def run(negatives: int) -> dict[str, Any]:
        tables = {task: make_table(6, task=task) for task in ("rec", "src")}
        tables["src"] = dataclasses.replace(tables["src"], queries=["thing"] * 6)
        for task, table in tables.items():
            cut = dataclasses.replace(table, negatives=table.negatives[:, :negatives] if negatives else None)
            tables[task] = cut
            ids = np.tile(np.arange(20, dtype=np.int32), (6, 1))
            save_rankings(tmp_path / f"ranking_{task}.npz", cut, ids, np.zeros(ids.shape, np.float32))
        training = {("train", task): dataclasses.replace(table, negatives=None) for task, table in tables.items()}
        made = Dataset("shop", [Item(f"i{n}", f"thing {n}") for n in range(N)], training)
        whole = Dataset("shop", made.items, training | {("test", task): table for task, table in tables.items()})
        found = {task: summarise(table, np.tile(np.arange(20), (6, 1)), samples=0) for task, table in tables.items()}
        general = {"loss": 4.5, "base_loss": 4.0}
        for name, value in (("evaluate_ranking", found), ("general_drift", general), ("heldout_text", [])):
            monkeypatch.setattr(evaluate_run, name, lambda *args, value=value, **options: value)
        assets = SimpleNamespace(
            dataset=whole,
            items=None,
            tokenizer=SimpleNamespace(unk_token_id=None),
            model=None,
            encode=lambda *args: None,
        )
        config = Config(evaluate=EvaluateConfig(candidates="sampled", samples=0, continuations=0, facts=False))
        return evaluate_run.evaluate_run(config, assets, SimpleNamespace(layout="decoder"), None, tmp_path)

    return run


def test_results_of_the_model_are_on_file_before_the_rankers_beside_it_begin(
    measured_run: Callable[[int], dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate_run, "simple_rankers", killed)
    with pytest.raises(KeyboardInterrupt):
        measured_run(12)
    kept = json.loads((tmp_path / "eval.json").read_text())
    assert kept["rec"]["rows"] == 6
    assert kept["general"]["loss"] == 4.5
    assert "evaluate again" in kept["baselines"]["BM25"]["src"]["missing"]
    report = (tmp_path / "report.html").read_text()
    assert "BM25, Search: not measured (the evaluation ended before it was measured: evaluate again)." in report


def test_a_ranker_that_fails_is_told_in_the_file_the_report_and_the_table(
    measured_run: Callable[[int], dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(*args: Any) -> None:
        raise MemoryError("Unable to allocate 149. GiB")

    monkeypatch.setattr(non_neural, "co_occurrence", too_large)
    found = measured_run(5)
    why = "not measured (there is not enough memory for it (Unable to allocate 149. GiB))"
    assert json.loads((tmp_path / "eval.json").read_text()) == found
    assert f"Item co-occurrence, Recommendation: {why}." in (tmp_path / "report.html").read_text()
    lines = evaluate_run.table_of(found).splitlines()
    assert f"co-occurrence, rec: {why}" in lines
    assert [line.split() for line in lines if line.startswith("co-occurrence  ")] == [["co-occurrence", *"-----"]]
    assert sum(" not measured " in line for line in lines) == 1
    # Six candidates: what any order reaches is no result.
    few = "each row has 6 candidates, so that a random order has hit@5 0.83, hit@10 1.00, hit@20 1.00"
    assert lines[-2:] == [f"{task}: {few}; more of them (data.num_negatives) say more" for task in ("rec", "src")]
    assert f"Search: {few}" in (tmp_path / "report.html").read_text()


def test_without_negatives_the_rankers_beside_the_model_rank_the_catalogue_too(
    measured_run: Callable[[int], dict[str, Any]],
) -> None:
    found = measured_run(0)
    assert not [line for line in evaluate_run.table_of(found).splitlines() if "not measured" in line]
    assert {entry["candidates"] for tasks in found["baselines"].values() for entry in tasks.values()} == {N}


def test_ties_of_a_model_favour_nobody(model: T5, items: ItemIndex) -> None:
    # Without weights every item has the same score.
    flat = T5.from_params(model.config, jax.tree.map(jnp.zeros_like, params_of(model)))
    table = make_table(300)
    ids, scores = rank_table(flat, items, table, make_encoded(table), k=13, batch_size=300)
    assert np.ptp(scores) == 0
    places = (ids == table.target[:, None]).argmax(axis=1)
    assert places.mean() == pytest.approx(6, abs=1)
    assert (places < 5).mean() == pytest.approx(5 / 13, abs=0.1)


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


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "[" * 100_000, b"\xff"])
def test_a_damaged_evaluation_of_another_run_is_named(text, tmp_path):
    with pytest.raises(FileNotFoundError, match="evaluate that run before comparing"):
        read_evaluation(tmp_path)
    (tmp_path / "eval.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=r"eval.json is damaged \(.*\): evaluate that run again"):
        read_evaluation(tmp_path)
