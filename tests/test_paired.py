"""Paired comparison of runs, against exact permutation and the t-test."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from gems_jax.data.tables import Row, Table
from gems_jax.evaluation.evaluate import load_rankings, save_rankings
from gems_jax.evaluation.paired import compare_rankings, metric_of_rows, paired_test


def test_p_value_is_that_of_all_sign_flips() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random(10) + 0.2, rng.random(10)
    signs = np.array(list(itertools.product([-1, 1], repeat=10)))
    exact = (np.abs(signs @ (a - b)) >= abs((a - b).sum()) - 1e-12).mean()
    assert paired_test(a, b, np.arange(10), samples=40_000).p_value == pytest.approx(exact, abs=0.01)


def test_p_value_is_near_that_of_a_paired_t_test_for_many_users() -> None:
    rng = np.random.default_rng(1)
    a = rng.random(400)
    b = a + 0.1 * rng.standard_normal(400) - 0.008
    found = paired_test(a, b, np.arange(400))
    expected = stats.ttest_rel(a, b)
    assert found.p_value == pytest.approx(expected.pvalue, abs=0.02)
    interval = expected.confidence_interval()
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=1e-3)
    assert found.difference == pytest.approx((a - b).mean())


def test_rows_of_one_user_count_as_one_observation() -> None:
    rng = np.random.default_rng(2)
    per_user = rng.standard_normal(8) + 0.5
    rows = np.repeat(per_user, 100)
    together = paired_test(rows, np.zeros(800), np.repeat(np.arange(8), 100))
    assert together.users == 8
    assert together.p_value == pytest.approx(paired_test(per_user, np.zeros(8), np.arange(8)).p_value, abs=0.02)
    assert together.p_value > 10 * paired_test(rows, np.zeros(800), np.arange(800)).p_value


def test_equal_runs_are_not_told_apart_and_the_order_of_runs_turns_the_sign() -> None:
    values = np.random.default_rng(3).random(50)
    users = np.array([f"u{n % 20}" for n in range(50)])
    assert paired_test(values, values, users) == (0.0, 0.0, 0.0, 1.0, 20)
    one, other = paired_test(values, values[::-1], users), paired_test(values[::-1], values, users)
    assert one.difference == -other.difference
    assert one.p_value == other.p_value
    assert paired_test(values, values[::-1], users) == one


def test_saved_rankings_of_two_runs_are_compared(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    table = Table.from_rows("rec", [Row(f"u{n // 2}", [0], n % 7) for n in range(60)])
    good, poor = np.stack([rng.permutation(12) for _ in range(60)]), np.stack([rng.permutation(12) for _ in range(60)])
    good[:, 0] = table.target
    good[:, 1:] = np.where(good[:, 1:] == table.target[:, None], -1, good[:, 1:])
    for name, ids in (("good", good), ("poor", poor)):
        save_rankings(tmp_path / f"{name}.npz", table, ids, np.zeros(ids.shape, np.float32))
    one, other = load_rankings(tmp_path / "good.npz"), load_rankings(tmp_path / "poor.npz")
    assert metric_of_rows(one, "mrr@10").tolist() == [1.0] * 60
    found = compare_rankings(one, other, "ndcg@10", samples=500)
    assert found.low > 0
    assert found.p_value < 0.01
    assert found.users == 30
    with pytest.raises(ValueError, match="12 were kept"):
        metric_of_rows(one, "hit@20")
    with pytest.raises(ValueError, match="no metric"):
        metric_of_rows(one, "recall@5")
    with pytest.raises(ValueError, match="different rows"):
        compare_rankings(one, other | {"target": other["target"][::-1]}, "hit@5")


def test_bad_input_is_named() -> None:
    values = np.ones(4)
    with pytest.raises(ValueError, match="one of each a row"):
        paired_test(values, values[:3], np.arange(4))
    with pytest.raises(ValueError, match="finite"):
        paired_test(values, np.array([1, 1, np.nan, 1]), np.arange(4))
    with pytest.raises(ValueError, match="no rows"):
        paired_test(values[:0], values[:0], np.arange(0))
    with pytest.raises(ValueError, match="samples"):
        paired_test(values, values, np.arange(4), samples=0)
