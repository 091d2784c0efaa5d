"""Rankings among sampled candidates and among the whole catalogue: apart, and the same for all methods."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from rows_to_rank import N, V, make_encoded, make_table

from gems_jax.config.evaluate import EvaluateConfig
from gems_jax.config.run import Config
from gems_jax.data.dataset.tables import Dataset, Item, Row, Table
from gems_jax.evaluation.candidate_sets import candidate_sets
from gems_jax.evaluation.evaluate import evaluate_ranking, load_rankings
from gems_jax.evaluation.ranking_summary import evaluate_scorer, summarise
from gems_jax.evaluation.transitions import new_transitions
from gems_jax.items.tokens import ItemIndex
from gems_jax.models import T5, T5Config
from gems_jax.training import evaluate_run


@pytest.fixture(scope="module")
def model() -> T5:
    config = T5Config(
        vocab_size=V, num_added_tokens=N, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_decoder_layers=1, num_heads=2
    )
    return T5.create(config, jax.random.key(0))


def shop(negatives: bool = True) -> Dataset:
    """Two tasks whose test rows are ``make_table``'s; training has its first five rows."""
    tables: dict[tuple[str, str], Table] = {}
    for task in ("rec", "src"):
        table = make_table(12, negatives=negatives, task=task)
        table = dataclasses.replace(table, queries=["thing"] * 12) if task == "src" else table
        tables["train", task] = dataclasses.replace(table.take(range(5)), negatives=None)
        tables["test", task] = table
    return Dataset("shop", [Item(f"i{n}", f"thing {n}") for n in range(N)], tables)


def evaluated(model: T5, dataset: Dataset, workdir: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Any:
    """``evaluate`` with a model of random weights and no general text."""
    monkeypatch.setattr(evaluate_run, "heldout_text", lambda *args: [])
    monkeypatch.setattr(evaluate_run, "general_drift", lambda *args, **kwargs: {"loss": 4.5, "base_loss": 4.0})
    assets = SimpleNamespace(
        dataset=dataset,
        items=ItemIndex(V + np.arange(N, dtype=np.int32)[:, None]),
        tokenizer=SimpleNamespace(unk_token_id=None),
        model=None,
        encode=lambda config, table: make_encoded(table),
    )
    config = Config(evaluate=EvaluateConfig(**{"samples": 20, "continuations": 0, "facts": False} | options))
    return evaluate_run.evaluate_run(config, assets, SimpleNamespace(layout="decoder"), model, workdir)


def test_a_run_is_measured_among_its_negatives_and_among_all_items(
    model: T5, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = evaluated(model, shop(), tmp_path, monkeypatch)
    assert json.loads((tmp_path / "eval.json").read_text()) == found
    whole = found["catalogue"]
    for task in ("rec", "src"):
        assert (found[task]["candidates"], whole[task]["candidates"]) == (13, N)
        assert found[task]["rows"] == whole[task]["rows"] == 12
        assert {f"{name}@{k}" for name in ("hit", "ndcg") for k in (5, 10, 20)} <= set(whole[task])
        for place, folder in ((found, tmp_path), (whole, tmp_path / "catalogue")):
            kept = load_rankings(folder / f"ranking_{task}.npz")
            assert place[task]["hit@5"] == pytest.approx(((kept["rank"] > 0) & (kept["rank"] <= 5)).mean())
    # The rankers beside the model choose from what the model chooses from.
    for place, size in ((found, 13), (whole, N)):
        sizes = {name: {entry["candidates"] for entry in of.values()} for name, of in place["baselines"].items()}
        assert sizes == dict.fromkeys(sizes, {size})
    assert set(found["baselines"]) == set(whole["baselines"]) > {"popularity", "co-occurrence", "BM25"}
    report = (tmp_path / "report.html").read_text()
    assert "The right item ranked among 13 items: itself and 12 sampled ones." in report
    assert f"The right item among the whole catalogue of {N} items" in report
    assert "rows of new transitions" in report
    assert "among all 30 items:" in evaluate_run.table_of(found).splitlines()


@pytest.mark.parametrize(
    ("candidates", "negatives", "main", "whole"),
    [
        ("sampled", True, 13, None),
        ("all", True, N, None),
        ("both", True, 13, N),
        ("both", False, N, None),
        ("sampled", False, N, None),
    ],
)
def test_only_what_was_asked_for_is_ranked(
    candidates: str, negatives: bool, main: int, whole: int | None, model: T5, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (tmp_path / "catalogue").mkdir()
    (tmp_path / "catalogue" / "ranking_rec.npz").write_text("of an earlier evaluation")
    found = evaluated(model, shop(negatives), tmp_path, monkeypatch, candidates=candidates, samples=0)
    assert found["rec"]["candidates"] == main
    assert found.get("catalogue", {}).get("rec", {}).get("candidates") == whole
    assert (tmp_path / "catalogue").is_dir() == (whole is not None)


def test_large_catalogues_are_ranked_whole_where_that_is_asked_for() -> None:
    tables = {"rec": make_table()}
    assert candidate_sets(tables, "auto", 99_999).whole is not None
    assert candidate_sets(tables, "auto", 100_000).whole is None
    assert candidate_sets(tables, "both", 100_000).whole is not None


def test_it_is_told_how_often_the_search_lost_the_right_item(model: T5) -> None:
    table = make_table(40, negatives=False)
    args = (model, ItemIndex(V + np.arange(N, dtype=np.int32)[:, None]), {"rec": table}, {"rec": make_encoded(table)})
    narrow = evaluate_ranking(*args, beams=20, samples=0)["rec"]
    wide = evaluate_ranking(*args, beams=25, samples=0)["rec"]
    all_items = evaluate_ranking(*args, beams=N, samples=0)["rec"]
    assert (narrow["beams"], wide["beams"]) == (20, 25)
    assert narrow["off_beam"] == pytest.approx(1 - narrow["hit@20"])
    assert 0 == all_items["off_beam"] < wide["off_beam"] < narrow["off_beam"] < 1


def test_a_pair_is_new_unless_it_stood_side_by_side_in_training() -> None:
    training = [
        Table.from_rows("rec", [Row("a", [3, 1], 4), Row("b", [], 2)]),
        Table.from_rows("src", [Row("a", [5], 6)]),
    ]
    pairs = [(3, 1), (1, 4), (5, 6), (3, 4), (4, 1), (4, 2), (1, 3)]
    table = Table.from_rows("rec", [Row(f"u{n}", [0, last], target) for n, (last, target) in enumerate(pairs)])
    assert new_transitions(training, table, 7).tolist() == [False, False, False, True, True, True, True]
    # A history ends where the next row's begins.
    apart = Table.from_rows("rec", [Row("a", [0, 1], 2), Row("b", [3, 4], 5)])
    asked = Table.from_rows("rec", [Row("c", [1], 3), Row("d", [], 2), Row("e", [4], 5)])
    assert new_transitions([apart], asked, 7).tolist() == [True, False, False]
    assert new_transitions([], asked, 7).tolist() == [True, False, True]


def test_new_transitions_are_measured_apart_for_a_model_and_for_the_rankers_beside_it() -> None:
    table = make_table(30, negatives=False)
    new = np.arange(30) % 3 == 0
    ranked = np.stack([np.random.default_rng(row).permutation(N)[:20] for row in range(30)])
    apart = summarise(table, ranked, samples=50, new=new)["new_transition"]
    alone = summarise(table.take(np.flatnonzero(new)), ranked[new], samples=50)
    assert apart == {key: alone[key] for key in apart}
    assert {"hit@10", "hit@10_ci", "ndcg@5", "rows", "users"} <= set(apart)
    scorer = lambda rows, candidates: np.tile(np.arange(float(N)), (len(rows), 1))  # noqa: E731
    assert evaluate_scorer(table, scorer, N, samples=0, new=new)["new_transition"]["rows"] == 10
    assert summarise(table, ranked, samples=0, new=np.zeros(30, bool))["new_transition"] == {"rows": 0, "users": 0}


def test_another_run_stands_beside_this_one_over_the_same_candidates_alone(
    model: T5, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, candidates in (("both", "both"), ("all", "all"), ("sampled", "sampled")):
        evaluated(model, shop(), tmp_path / name, monkeypatch, candidates=candidates)
    compare = {name: str(tmp_path / name) for name in ("both", "all", "sampled")}
    found = evaluated(model, shop(), tmp_path / "run", monkeypatch, candidates="both", compare=compare)
    beside = {
        name: {run: entry["rec"]["candidates"] for run, entry in place["comparison"].items() if "rec" in entry}
        for name, place in (("sampled", found), ("whole", found["catalogue"]))
    }
    assert beside == {"sampled": {"both": 13, "sampled": 13}, "whole": {"both": N, "all": N}}
    assert set(found["paired"]) == {"both", "sampled"}
    assert set(found["catalogue"]["paired"]) == {"both", "all"}
    said = "all, rec: not shown among 13 candidates a row, because it was ranked among 30; evaluate it again"
    assert said in found["not_compared"]
    assert said in evaluate_run.table_of(found)
    assert said in (tmp_path / "run" / "report.html").read_text()
    assert len(found["not_compared"]) == 4
