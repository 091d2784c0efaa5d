"""Items that shared all codes: none do afterwards, and no other way to separate them costs less."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gems_jax as gj
from gems_jax.identifiers import reassignment
from gems_jax.identifiers.measures import counts_of, in_collisions, level_errors
from gems_jax.identifiers.prefixes import nearest_prefixes

Problem = tuple[np.ndarray, np.ndarray, np.ndarray]


@st.composite
def problems(draw: Any) -> Problem:
    """Codes, embeddings and codebooks; as many items as there are identifiers at most."""
    levels, size = draw(st.sampled_from([(1, 4), (2, 2), (2, 3), (3, 2), (3, 3)]))
    count = draw(st.integers(1, size**levels))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    books = rng.normal(size=(levels, size, 2)).astype(np.float32)
    few = draw(st.integers(1, count))  # different items: many collide
    rows = rng.normal(size=(few, 2))[rng.integers(few, size=count)].astype(np.float32)
    codes = rng.integers(size, size=(count, levels)) if draw(st.booleans()) else np.zeros((count, levels), np.int64)
    return codes, rows, books


@given(problems())
@settings(max_examples=80, deadline=None)
def test_no_collision_is_left_and_what_moved_is_told(problem: Problem) -> None:
    codes, rows, books = problem
    done = gj.identifiers.reassign(*problem)
    assert in_collisions(done.codes) == 0
    assert done.codes.min() >= 0
    assert done.codes.max() < books.shape[1]
    assert done.moved == (done.codes != codes).any(1).sum()
    assert done.spilled == (done.codes != codes)[:, :-1].any(1).sum()
    assert done.moved >= in_collisions(codes) - len(np.unique(codes[counts_of(codes) > 1], axis=0))
    for which, error in ((codes, done.before), (done.codes, done.after)):
        sums = sum(book[column] for book, column in zip(books, which.T, strict=True))
        assert np.isclose(error, np.square(rows - sums).sum(1).mean(), rtol=1e-4)
    # A prefix in which no two items collided, and that nothing spilled from, is as it was.
    _, prefix = np.unique(codes[:, :-1], axis=0, return_inverse=True)
    prefix = prefix.reshape(-1)
    calm = ~np.isin(prefix, prefix[counts_of(codes) > 1])
    assert (done.codes[calm] == codes[calm]).all()


@given(problems())
@settings(max_examples=40, deadline=None)
def test_prefixes_with_room_are_separated_at_the_least_cost_of_all_ways(problem: Problem) -> None:
    codes, rows, books = problem
    done = gj.identifiers.reassign(*problem)
    for prefix in np.unique(codes[:, :-1], axis=0):
        members = np.flatnonzero((codes[:, :-1] == prefix).all(1))
        size = books.shape[1]
        if len(members) > size or in_collisions(codes[members]) == 0:
            continue
        ways = [np.array(way) for way in itertools.permutations(range(size), len(members))]
        costs = []
        for way in ways:
            tried = codes[members].copy()
            tried[:, -1] = way
            costs.append(level_errors(tried, rows[members], books)[-1])
        assert level_errors(done.codes[members], rows[members], books)[-1] == pytest.approx(min(costs), rel=1e-4)


def test_a_full_prefix_spills_over_to_the_neighbours_at_the_least_cost() -> None:
    books = np.array([[[0.0], [10.0], [100.0]], [[-1.0], [1.0], [2.0]]], np.float32)
    codes = np.array([[0, 1]] * 4 + [[1, 0]])
    rows = np.array([[1.0], [1.1], [1.2], [6.0], [9.0]], np.float32)
    done = gj.identifiers.reassign(codes, rows, books)
    # Free are three codes under (0,), and 11 and 12 under (1,): 6.0 is the cheapest to send away.
    assert done.spilled == 1
    assert done.codes[3].tolist() == [1, 1]
    assert done.codes[4].tolist() == [1, 0]
    assert sorted(done.codes[:3, 1].tolist()) == [0, 1, 2]


def test_many_equal_items_are_spread_part_by_part(monkeypatch: Any) -> None:
    monkeypatch.setattr(reassignment, "_TOGETHER", 7)
    rng = np.random.default_rng(0)
    books = rng.normal(size=(3, 4, 3)).astype(np.float32)
    codes = np.concatenate([np.tile([1, 2, 3], (30, 1)), np.tile([1, 1, 0], (20, 1)), [[2, 0, 0]] * 14])
    done = gj.identifiers.reassign(codes, rng.normal(size=(64, 3)).astype(np.float32), books)  # every identifier
    assert len(np.unique(done.codes, axis=0)) == 64


def test_prefixes_are_found_nearest_first_and_each_once() -> None:
    rng = np.random.default_rng(0)
    books, vector = rng.normal(size=(2, 5, 3)), rng.normal(size=3)
    found = nearest_prefixes(vector, books, 25)
    distances = np.square(vector - books[0][found[:, 0]] - books[1][found[:, 1]]).sum(1)
    assert len(np.unique(found, axis=0)) == 25
    assert (np.diff(distances) >= 0).all()


def test_what_cannot_be_separated_is_named() -> None:
    books = np.zeros((2, 2, 1), np.float32)
    with pytest.raises(ValueError, match="5 items need as many identifiers, and 2 levels of 2 codes make 4"):
        gj.identifiers.reassign(np.zeros((5, 2), int), np.zeros((5, 1)), books)
    with pytest.raises(ValueError, match=r"codes have shape \(5, 1\)"):
        gj.identifiers.reassign(np.zeros((5, 1), int), np.zeros((5, 1)), books)
    with pytest.raises(ValueError, match="codes reach from 0 to 2"):
        gj.identifiers.reassign(np.full((1, 2), [0, 2]), np.zeros((1, 1)), books)
    with pytest.raises(ValueError, match="embeddings have 3 dimensions, the codebooks 1"):
        gj.identifiers.reassign(np.zeros((1, 2), int), np.zeros((1, 3)), books)


def test_quantised_items_without_collisions_have_the_error_that_is_told() -> None:
    rows = np.random.default_rng(1).normal(size=(60, 3)).astype(np.float32)
    ids = gj.identifiers.rkmeans(rows, levels=2, size=8)
    assert ids.report()["in_collisions"] > 0
    apart, done = ids.without_collisions(rows)
    assert apart.report()["in_collisions"] == 0
    assert apart.errors == (*ids.errors[:-1], done.after)
    assert done.after > done.before == pytest.approx(ids.errors[-1], rel=1e-4)
