"""Ranking metrics against hand-written oracles and the released code's recorded values."""

import itertools
import math

import ir_measures
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ir_measures import AP, RR, Success, nDCG
from shared import SHARED, needs_shared

from gems_jax.evaluation.bootstrap import bootstrap_interval
from gems_jax.ranking import metrics

NAMES = ("hit", "ndcg", "mrr", "map")


def oracle(name: str, ranking: list[int], relevant: int, k: int) -> float:
    """The definitions, spelled out in plain Python."""
    top = ranking[:k]
    if name == "hit":
        return float(any(top))
    if name == "mrr":
        return next((1.0 / rank for rank, hit in enumerate(top, 1) if hit), 0.0)
    best = min(relevant, k)
    if not best:
        return 0.0
    if name == "ndcg":
        gain = sum(hit / math.log2(rank + 1) for rank, hit in enumerate(top, 1))
        return gain / sum(1 / math.log2(rank + 1) for rank in range(1, best + 1))
    return sum(sum(top[:rank]) / rank for rank, hit in enumerate(top, 1) if hit) / best


@settings(max_examples=60)
@given(
    ranking=st.lists(st.integers(0, 1), min_size=1, max_size=8),
    missed=st.integers(0, 4),
    k=st.integers(1, 10),
    name=st.sampled_from(NAMES),
)
def test_metric_equals_its_definition(ranking: list[int], missed: int, k: int, name: str) -> None:
    relevant = sum(ranking) + missed
    value = getattr(metrics, name)(ranking, relevant, k)
    assert float(value) == pytest.approx(oracle(name, ranking, relevant, k), abs=1e-12)
    assert 0.0 <= float(value) <= 1.0 + 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_metric_is_the_same_on_jax_arrays_and_under_jit(name: str) -> None:
    rankings = np.array(list(itertools.product([0, 1], repeat=4)))
    relevant = rankings.sum(-1) + 1
    metric = getattr(metrics, name)
    expected = metric(rankings, relevant, 3)
    eager = metric(jnp.asarray(rankings), jnp.asarray(relevant), 3)
    jitted = jax.jit(lambda r, n: metric(r, n, 3))(jnp.asarray(rankings), jnp.asarray(relevant))
    assert isinstance(eager, jax.Array)
    np.testing.assert_allclose(eager, expected, atol=1e-6)
    np.testing.assert_allclose(jitted, expected, atol=1e-6)


def test_ranking_shorter_than_k_counts_what_is_missing_as_not_relevant() -> None:
    for name in NAMES:
        metric = getattr(metrics, name)
        assert metric([0, 1], 2, 10) == pytest.approx(metric([0, 1] + [0] * 8, 2, 10))


def test_perfect_ranking_scores_one_everywhere() -> None:
    for name in NAMES:
        assert getattr(metrics, name)([[1, 1, 0]], [2], 3).tolist() == [1.0]


def test_leading_axes_are_kept() -> None:
    rankings = np.zeros((2, 3, 5), int)
    assert metrics.ndcg(rankings, np.ones((2, 3), int), 5).shape == (2, 3)


@pytest.mark.parametrize(
    ("ranking", "relevant", "k", "message"),
    [
        ([[0, 1]], [1], 0, "cut-off"),
        ([[0, 1]], [1], 2.5, "cut-off"),
        ([[0, 1]], [1, 1], 2, r"shape \(2,\)"),
        ([[0, 2]], [1], 2, "zeros and ones"),
        ([[1, 1]], [1], 2, r"ranking \(0,\) holds 2"),
        (1, 1, 2, "last axis"),
    ],
)
def test_bad_input_is_named(ranking: object, relevant: object, k: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metrics.hit(ranking, relevant, k)


def test_relevance_marks_targets_and_never_padding() -> None:
    assert metrics.relevance([[4, -1, 2]], [[2, -1]]).tolist() == [[0, 0, 1]]
    with pytest.raises(ValueError, match="all but the last axis"):
        metrics.relevance([[1]], [[1], [2]])


@needs_shared
@pytest.mark.parametrize("suffix", ["", "_filtered"])
def test_released_variants_reproduce_the_recorded_values(suffix: str) -> None:
    with np.load(SHARED / "fixtures" / "metrics.npz", allow_pickle=False) as file:
        data = dict(file)
    scores = data["scores"].copy()
    if suffix:
        scores[np.isin(data["pred_items"], data["invalid_items"])] = -1000.0
    ranked = np.take_along_axis(data["pred_items"], np.argsort(-scores, axis=-1, kind="stable"), axis=-1)
    relevance = metrics.relevance(ranked, data["target_items"])
    np.testing.assert_array_equal(relevance, data["relevance" + suffix])
    first_only = metrics.relevance(ranked, data["target_items"][:, :1])
    for column, label in enumerate(data["metric_names"]):
        name, k = str(label).split("@")
        metric = getattr(metrics, "released_" + name)
        values = metric(relevance, int(k))
        np.testing.assert_allclose(values, data["metric_per_query" + suffix][:, column], atol=1e-12)
        assert values.mean() == pytest.approx(data["metric_mean" + suffix][column], abs=1e-12)
        # The earlier revision looks for the first target only and divides by the number of all targets.
        old = metric(first_only, int(k)).sum() / data["n_targets"].sum()
        assert old == pytest.approx(data["old_metric_mean" + suffix][column], abs=1e-12)


@pytest.mark.parametrize("k", [5, 10, 20])
def test_metrics_are_those_of_ir_measures(k: int) -> None:
    rng = np.random.default_rng(k)
    queries, items, kept = 60, 40, 20
    rankings = np.stack([rng.permutation(items)[:kept] for _ in range(queries)])
    targets = np.full((queries, 25), -1)
    relevant = rng.integers(1, 26, queries)
    for row, count in enumerate(relevant):
        targets[row, :count] = rng.permutation(items)[:count]
    qrels = [ir_measures.Qrel(str(q), str(d), 1) for q in range(queries) for d in targets[q, : relevant[q]]]
    run = [
        ir_measures.ScoredDoc(str(q), str(d), float(kept - rank))
        for q in range(queries)
        for rank, d in enumerate(rankings[q])
    ]
    relevance = metrics.relevance(rankings, targets)
    ours = {"hit": Success @ k, "ndcg": nDCG @ k, "mrr": RR @ k, "map": AP @ k}
    expected: dict[str, np.ndarray] = {name: np.zeros(queries) for name in NAMES}
    names = {measure: name for name, measure in ours.items()}
    for found in ir_measures.iter_calc(list(ours.values()), qrels, run):
        expected[names[found.measure]][int(found.query_id)] = found.value
    # trec_eval divides by all relevant items, even where there are more than a ranking of k can hold.
    expected["map"] *= relevant / np.minimum(relevant, k)
    for name in NAMES:
        np.testing.assert_allclose(getattr(metrics, name)(relevance, relevant, k), expected[name], atol=1e-6)


def test_textbook_metrics_do_not_exceed_the_released_ones() -> None:
    rng = np.random.default_rng(0)
    rankings = rng.integers(0, 2, (200, 12))
    relevant = rankings.sum(-1) + rng.integers(0, 3, 200)
    for name in ("ndcg", "map"):
        textbook = getattr(metrics, name)(rankings, relevant, 5)
        released = getattr(metrics, "released_" + name)(rankings, 5)
        assert (textbook <= released + 1e-12).all()
        assert (textbook < released - 1e-3).any()


def test_bootstrap_interval_has_the_width_of_the_normal_approximation() -> None:
    values = np.random.default_rng(1).random(2000)
    low, high = bootstrap_interval(values, np.arange(2000))
    half = 1.96 * values.std() / math.sqrt(2000)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.15 * half)


def test_bootstrap_interval_is_wider_when_rows_belong_to_few_users() -> None:
    per_user = np.random.default_rng(2).random(40)
    values, users = np.repeat(per_user, 50), np.repeat(np.arange(40), 50)
    together = bootstrap_interval(values, users)
    apart = bootstrap_interval(values, np.arange(2000))
    assert together[1] - together[0] > 4 * (apart[1] - apart[0])


def test_bootstrap_interval_is_reproducible_and_refuses_bad_input() -> None:
    values, users = np.arange(10.0), np.array(list("aabbccddee"))
    assert bootstrap_interval(values, users, seed=3) == bootstrap_interval(values, users, seed=3)
    with pytest.raises(ValueError, match="no rows"):
        bootstrap_interval(np.zeros(0), np.zeros(0))
    with pytest.raises(ValueError, match="one of each"):
        bootstrap_interval(values, users[:3])
    with pytest.raises(ValueError, match="between 0 and 1"):
        bootstrap_interval(values, users, level=95)
