"""Codes of items that come later: no two items ever share all of theirs, and those that were there keep theirs."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gems_jax as gj
from gems_jax.identifiers import placement


@st.composite
def shops(draw):
    """Codebooks, codes of old items that differ, embeddings of new items: as many as there is room for at most."""
    levels, size = draw(st.sampled_from([(1, 5), (2, 3), (2, 4), (3, 2), (3, 3)]))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    books = rng.normal(size=(levels, size, 2)).astype(np.float32)
    every = np.array(list(itertools.product(range(size), repeat=levels)))
    old = every[rng.permutation(len(every))[: draw(st.integers(1, len(every) - 1))]]
    room = int(np.prod([len(np.unique(column)) for column in old.T])) - len(old)
    count = draw(st.integers(min(1, room), room))
    few = draw(st.integers(1, max(count, 1)))  # different texts: many collide
    return books, old, rng.normal(size=(few, 2))[rng.integers(few, size=count)].astype(np.float32)


def as_rows(codes):
    return {tuple(row) for row in codes.tolist()}


@given(shops())
def test_no_two_items_share_all_codes_whatever_comes(shop):
    books, old, rows = shop
    if not len(rows):
        return
    placed = gj.identifiers.place(rows, books, old)
    assert len(as_rows(np.concatenate([old, placed.codes]))) == len(old) + len(rows)
    for column, there in zip(placed.codes.T, old.T, strict=True):
        assert np.isin(column, there).all(), "a code that no old item has, and so no token"
    # By numpy: the nearest code of each level among those that are used.
    left, nearest = rows.astype(np.float64), []
    for book, there in zip(books, old.T, strict=True):
        names = np.unique(there)
        nearest.append(names[np.square(left[:, None] - book[names]).sum(-1).argmin(1)])
        left = left - book[nearest[-1]]
    nearest = np.stack(nearest, axis=1)
    assert placed.moved == (placed.codes != nearest).any(1).sum()
    assert placed.spilled == (placed.codes != nearest)[:, :-1].any(1).sum()
    calm = [row not in as_rows(old) and (nearest == row).all(1).sum() == 1 for row in map(tuple, nearest.tolist())]
    if all(calm):
        assert placed.moved == 0
    # In parts, as they come: the same promise, each part beside all before.
    known = old
    for part in np.array_split(rows, 3):
        if len(part):
            known = np.concatenate([known, gj.identifiers.place(part, books, known).codes])
    assert len(as_rows(known)) == len(known)


@given(shops())
def test_under_a_prefix_with_room_no_other_choice_of_free_codes_costs_less(shop):
    books, old, rows = shop
    if not len(rows):
        return
    placed = gj.identifiers.place(rows, books, old)
    for prefix in np.unique(placed.codes[:, :-1], axis=0):
        members = np.flatnonzero((placed.codes[:, :-1] == prefix).all(1))
        taken = old[(old[:, :-1] == prefix).all(1), -1]
        free = np.setdiff1d(np.unique(old[:, -1]), taken)
        if placed.spilled or len(members) > 4:
            continue
        base = sum((book[code] for book, code in zip(books, prefix, strict=False)), np.zeros(2))
        cost = lambda codes: np.square(rows[members] - base - books[-1][list(codes)]).sum()  # noqa: E731, B023
        best = min(cost(codes) for codes in itertools.permutations(free, len(members)))
        assert cost(placed.codes[members, -1]) <= best + 1e-4


def test_many_alike_are_spread_over_prefixes_in_parts_of_bounded_size(monkeypatch):
    monkeypatch.setattr(placement, "_TOGETHER", 3)
    rng = np.random.default_rng(0)
    books = rng.normal(size=(2, 6, 3)).astype(np.float32)
    old = np.array([[n, n] for n in range(6)])
    placed = gj.identifiers.place(np.zeros((30, 3), np.float32), books, old)
    assert len(as_rows(np.concatenate([old, placed.codes]))) == 36
    assert placed.spilled >= 25
    with pytest.raises(ValueError, match="31 new items need as many identifiers.*30 are free"):
        gj.identifiers.place(np.zeros((31, 3), np.float32), books, old)


def test_codes_that_a_file_brings_are_kept_where_they_are_free():
    books = np.array([[[0.0], [8.0]], [[-1.0], [1.0]]], np.float32)
    old = np.array([[0, 0], [1, 1]])
    placed = gj.identifiers.place(np.array([[8.0], [0.0]], np.float32), books, old, wanted=np.array([[0, 1], [1, 0]]))
    assert placed.codes.tolist() == [[0, 1], [1, 0]]
    assert placed.moved == 0
    placed = gj.identifiers.place(np.array([[7.0]], np.float32), books, old, wanted=np.array([[1, 1]]))
    assert placed.codes.tolist() == [[1, 0]]
    more = np.concatenate([books, books + 4], axis=1)
    with pytest.raises(ValueError, match="level 2: no old item has code 3 there"):
        gj.identifiers.place(np.array([[7.0]], np.float32), more, old, wanted=np.array([[0, 3]]))
