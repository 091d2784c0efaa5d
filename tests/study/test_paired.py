"""Paired comparison of runs, against exact permutation and the t-test."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from gems_jax.data.dataset.tables import Row, Table
from gems_jax.evaluation.compare_runs import compare_runs, compare_with_each, comparison_lines, main
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


def saved_run(folder: Path, quality: float, tasks: tuple[str, ...] = ("rec", "src"), rows: int = 80) -> Path:
    """A folder as an evaluation leaves it, with the right item first in a share of the rows."""
    rng = np.random.default_rng(int(100 * quality))
    for task in tasks:
        table = Table.from_rows(task, [Row(f"u{n // 2}", [0], n % 7) for n in range(rows)])
        ids = np.stack([rng.permutation(np.arange(7, 40))[:20] for _ in range(rows)])
        found = rng.random(rows) < quality
        ids[found, 0] = table.target[found]
        save_rankings(folder / f"ranking_{task}.npz", table, ids, np.zeros(ids.shape, np.float32))
    return folder


def test_two_evaluated_folders_are_compared_task_by_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, poor = saved_run(tmp_path / "good", 0.8), saved_run(tmp_path / "poor", 0.3)
    found = compare_runs(good, poor, ("ndcg@10", "hit@20"), samples=300)
    assert {task: list(rows) for task, rows in found.items()} == {
        task: ["ndcg@10", "hit@20"] for task in ("rec", "src")
    }
    for rows in found.values():
        for row in rows.values():
            assert row["difference"] == pytest.approx(row["a"] - row["b"])
            assert 0 < row["low"] < row["difference"] < row["high"]
            assert row["p_value"] < 0.01
            assert row["users"] == 40
    assert main([str(good), str(poor), "--metrics", "ndcg@10", "hit@20", "--samples", "300"]) == 0
    assert capsys.readouterr().out == comparison_lines(found) + "\n"


def test_folders_that_cannot_be_compared_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, other_rows = saved_run(tmp_path / "run", 0.5), saved_run(tmp_path / "other", 0.5, rows=60)
    other_tasks = saved_run(tmp_path / "tasks", 0.5, ("chat",))
    with pytest.raises(ValueError, match="'rec': the two runs ranked different rows"):
        compare_runs(run, other_rows)
    with pytest.raises(ValueError, match="no task is in both"):
        compare_runs(run, other_tasks)
    with pytest.raises(FileNotFoundError, match="evaluate the run there first"):
        compare_runs(run, tmp_path / "nowhere")
    with pytest.raises(ValueError, match="s3://bucket/run is on an object store: copy it here"):
        compare_runs(run, "s3://bucket/run")
    assert main([str(run), str(tmp_path / "nowhere")]) == 2
    assert "nowhere holds no ranking" in capsys.readouterr().err
    same = saved_run(tmp_path / "same", 0.5)
    with pytest.warns(UserWarning, match="'shorter' is not compared user by user"):
        found = compare_with_each(run, {"same": same, "shorter": other_rows}, samples=50)
    assert list(found) == ["same"]
    assert found["same"]["rec"]["ndcg@10"]["p_value"] == 1.0


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
