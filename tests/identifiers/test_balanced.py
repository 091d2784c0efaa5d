"""Residual k-means whose codes hold no more items than a capacity: never exceeded, at nearly the least cost."""

import re
from typing import Any

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

import gems_jax as gj
from gems_jax.identifiers import balanced_kmeans, kmeans
from gems_jax.identifiers.capacity import capacity_of, codes_within, fit_prices
from gems_jax.identifiers.kmeans import fit_kmeans


def uneven_rows(count: int, width: int = 8, groups: int = 12, seed: int = 0) -> np.ndarray:
    """Rows around few centres, most of them around the first, far from the origin."""
    rng = np.random.default_rng(seed)
    centres = 3 * rng.normal(size=(groups, width)) + 20
    group = (groups * rng.random(count) ** 3).astype(int)
    return (centres[group] + rng.normal(size=(count, width))).astype(np.float32)


ROWS = uneven_rows(1500)


def costs_of(rows: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Squared distances, float64 ``[N, K]``."""
    return np.square(rows.astype(np.float64)[:, None] - centres[None]).sum(2)


def largest_of(codes: np.ndarray) -> list[int]:
    return [int(np.bincount(column).max()) for column in codes.T]


@pytest.mark.parametrize(("count", "size", "factor"), [(400, 8, 1.0), (333, 16, 1.0), (400, 8, 1.25), (60, 20, 1.0)])
def test_codes_cost_within_three_in_a_hundred_of_the_least_that_there_is(count: int, size: int, factor: float) -> None:
    rows, capacity = uneven_rows(count), capacity_of(count, size, factor)
    centres = fit_kmeans(rows, size, seed=0)
    costs = costs_of(rows, centres)
    each, place = linear_sum_assignment(np.repeat(costs, capacity, axis=1))
    least = costs[each, place // capacity].sum()
    prices = fit_prices(rows, centres, capacity / count)
    codes = codes_within(lambda at: rows[at], count, centres, prices, capacity)
    cost = costs[np.arange(count), codes].sum()
    assert np.bincount(codes).max() <= capacity
    assert least * (1 - 1e-9) <= cost <= 1.03 * least
    # Prices that do not fit cost rows more, never the capacity.
    dear = codes_within(lambda at: rows[at], count, centres, 100 * np.arange(size, dtype=np.float32), capacity)
    assert np.bincount(dear).max() <= capacity


def test_where_the_nearest_codes_keep_within_the_capacity_these_are_given() -> None:
    rows = uneven_rows(300)
    centres = fit_kmeans(rows, 8, seed=0)
    nearest = costs_of(rows, centres).argmin(1)
    capacity = int(np.bincount(nearest).max())
    prices = fit_prices(rows, centres, 2 * capacity / 300)
    assert (codes_within(lambda at: rows[at], 300, centres, prices, capacity) == nearest).all()


@pytest.mark.parametrize("factor", [1.0, 1.3])
@pytest.mark.parametrize(
    "rows",
    [ROWS, np.ones((100, 3), np.float32), uneven_rows(10), np.repeat(uneven_rows(5), 30, axis=0)],
    ids=["uneven", "all alike", "fewer items than codes", "five items thirty times"],
)
def test_no_code_of_a_level_has_more_items_than_the_capacity(rows: Any, factor: float) -> None:
    ids = gj.identifiers.rkmeans(rows, levels=2, size=16, capacity_factor=factor)
    report = ids.report()
    assert report["largest"] == largest_of(ids.codes)
    assert max(report["largest"]) <= int(np.ceil(factor * len(rows) / 16))
    assert np.isfinite(ids.codebooks).all()
    apart, _ = ids.without_collisions(rows) if len(rows) <= 256 else (ids, None)
    assert apart.codes.shape == (len(rows), 2)


def test_codes_are_used_more_evenly_at_some_cost() -> None:
    free, even = (gj.identifiers.rkmeans(ROWS, levels=2, size=16, capacity_factor=f).report() for f in (None, 1.0))
    assert free["largest"][0] > 1.5 * even["largest"][0]
    assert min(even["entropy_bits"]) > 3.99 > free["entropy_bits"][0]
    assert free["error"][0] < even["error"][0] < 1.0


def test_passes_over_all_items_follow_those_over_some(monkeypatch: Any) -> None:
    whole = gj.identifiers.rkmeans(ROWS, levels=2, size=8, capacity_factor=1.1)
    monkeypatch.setattr(balanced_kmeans, "_COSTS", 8 * 300)
    some = gj.identifiers.rkmeans(ROWS, levels=2, size=8, sample=700, capacity_factor=1.1)
    assert max(largest_of(some.codes)) <= capacity_of(1500, 8, 1.1)
    assert some.errors[2] <= 1.1 * whole.errors[2]
    assert (some.codebooks != whole.codebooks).any()


def test_each_centre_is_the_mean_of_its_items_and_the_same_seed_gives_the_same_bits(monkeypatch: Any) -> None:
    ids = gj.identifiers.rkmeans(ROWS, levels=1, size=8, capacity_factor=1.0)
    for code in range(8):
        np.testing.assert_allclose(ids.codebooks[0, code], ROWS[ids.codes[:, 0] == code].mean(0), rtol=1e-5)
    again = gj.identifiers.rkmeans(ROWS, levels=1, size=8, capacity_factor=1.0)
    assert (again.codes == ids.codes).all()
    assert (again.codebooks == ids.codebooks).all()
    monkeypatch.setattr(kmeans, "CHUNK", 256)
    chunks = gj.identifiers.rkmeans(ROWS, levels=1, size=8, capacity_factor=1.0)
    assert max(largest_of(chunks.codes)) <= capacity_of(1500, 8, 1.0)
    assert chunks.errors[1] == pytest.approx(ids.errors[1], rel=0.02)


@pytest.mark.parametrize("factor", [0.9, -1.0, np.inf, np.nan])
def test_a_capacity_without_room_for_all_items_is_refused(factor: float) -> None:
    with pytest.raises(ValueError, match=re.escape(f"capacity_factor must be 1 or more, got {factor}")):
        gj.identifiers.rkmeans(ROWS, levels=1, size=8, capacity_factor=factor)
