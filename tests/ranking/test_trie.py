"""The trie in flat arrays, against nested dictionaries."""

import dataclasses
import time
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gems_jax.items.tokens import ItemIndex
from gems_jax.ranking.candidate_tries import build_candidate_tries
from gems_jax.ranking.token_logits import TokenLogits
from gems_jax.ranking.trie import Trie, build_trie, catalogue_of


def nested(rows: list[tuple[int, ...]]) -> dict[Any, Any]:
    """Tokens to sub-tries; the item under ``None``."""
    root: dict[Any, Any] = {}
    for item, row in enumerate(rows):
        node = root
        for token in row:
            node = node.setdefault(token, {})
        node[None] = item
    return root


def unrolled(trie: Trie, node: int = 0, depth: int = 0) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    item = int(trie.items_at(depth, jnp.array([node]))[0])
    if item >= 0:
        found[None] = item
    if depth < trie.depth:
        first, end = trie.first_child[node : node + 2].tolist()
        assert end - first <= trie.degrees[depth]
        tokens = trie.token[first:end].tolist()
        assert tokens == sorted(set(tokens))
        found |= {t: unrolled(trie, child, depth + 1) for t, child in zip(tokens, range(first, end), strict=True)}
    return found


rows_of_tokens = st.lists(
    st.lists(st.integers(0, 4), min_size=1, max_size=4).map(tuple), min_size=1, max_size=25, unique=True
)


def padded(rows: list[tuple[int, ...]]) -> ItemIndex:
    width = max(map(len, rows))
    return ItemIndex(np.array([row + (-1,) * (width - len(row)) for row in rows]))


@settings(max_examples=30)
@given(rows_of_tokens)
def test_the_arrays_are_the_trie_of_the_identifiers(rows: list[tuple[int, ...]]) -> None:
    trie = build_trie(padded(rows))
    assert unrolled(trie) == nested(rows)
    assert trie.ends == tuple(any(len(row) == depth for row in rows) for depth in range(trie.depth + 1))


def continuations(
    constraint: Any, depth: int, nodes: np.ndarray, columns: int, shift: int
) -> dict[tuple[int, int], tuple[int, float]]:
    """(beam, token) -> (node, score) of all that is allowed; beam b's logit of column c is c + 100 b."""
    values = jnp.arange(columns, dtype=jnp.float32) + 100.0 * jnp.arange(len(nodes))[:, None]
    logits = TokenLogits((values[:, :1], values[:, 1:]), (shift, shift + 1))
    values, pick = constraint.expand(depth, jnp.asarray(nodes), logits, jnp.zeros(len(nodes)))
    allowed = np.flatnonzero(np.isfinite(np.asarray(values)))
    beams, picked, tokens = (np.asarray(array)[allowed].tolist() for array in pick(jnp.arange(len(values))))
    found = {
        (beam, token): (node, float(value))
        for beam, token, node, value in zip(beams, tokens, picked, np.asarray(values)[allowed], strict=True)
    }
    assert len(found) == len(allowed)
    return found


def test_expansion_gives_the_children_of_the_beams_and_of_no_other() -> None:
    rows = [(5,), (5, 6), (5, 7, 8), (9, 6, 5), (9, 7)]
    trie = build_trie(padded(rows))
    first = continuations(trie, 0, np.array([0]), 10, 0)
    assert {key: value for key, (_, value) in first.items()} == {(0, 5): 5.0, (0, 9): 9.0}
    nodes = np.array([first[0, 9][0], -1, first[0, 5][0]])
    second = continuations(trie, 1, nodes, 10, 2)
    # Column t - 2 holds token t's logit.
    expected = {(0, 6): 4.0, (0, 7): 5.0, (2, 6): 204.0, (2, 7): 205.0}
    assert {key: value for key, (_, value) in second.items()} == expected
    assert trie.items_at(1, jnp.asarray(nodes)).tolist() == [-1, -1, 0]
    ends = [second[key][0] for key in ((0, 6), (0, 7), (2, 6), (2, 7))]
    assert trie.items_at(2, jnp.asarray(ends)).tolist() == [-1, 4, 1, -1]


@settings(max_examples=15)
@given(rows_of_tokens, st.data())
def test_a_rows_trie_is_the_trie_of_its_candidates(rows: list[tuple[int, ...]], data: Any) -> None:
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), unique=True))
    candidates = np.array([[*chosen, -1, -1]])
    tries = build_candidate_tries(padded(rows), candidates, beams=2)
    row = dataclasses.replace(tries, table=tries.table[0])

    def below(node: int, depth: int) -> dict[Any, Any]:
        item = int(row.items_at(depth, jnp.array([node]))[0])
        found: dict[Any, Any] = {None: item} if depth and item >= 0 else {}
        if depth < row.depth:
            steps = continuations(row, depth, np.array([node]), 5, 0)
            found |= {token: below(child, depth + 1) for (_, token), (child, _) in steps.items()}
        return found

    kept = [rows[item] if item in chosen else None for item in range(len(rows))]
    expected = nested([row or () for row in kept])
    expected.pop(None, None)
    assert below(0, 0) == expected


def test_logits_in_parts_are_those_of_the_tables_joined() -> None:
    rng = np.random.default_rng(0)
    joined = jnp.asarray(rng.normal(size=(3, 11)).astype(np.float32) * 30)
    logits = TokenLogits((joined[:, :1], joined[:, 1:4], joined[:, 4:]), (2, 5, 8))
    tokens = np.array([2, 5, 6, 7, *range(8, 15)])
    np.testing.assert_array_equal(logits.at(jnp.arange(3)[:, None], jnp.asarray(tokens)), joined)
    np.testing.assert_allclose(logits.log_normaliser(), np.log(np.exp(np.float64(joined)).sum(1)), rtol=1e-6)


def test_the_trie_of_items_is_made_once() -> None:
    items = ItemIndex(np.array([[5, 6], [5, 7]]))
    assert catalogue_of(items) is catalogue_of(items)
    assert catalogue_of(items).tokens.tolist() == [5, 6, 7]
    assert catalogue_of(ItemIndex(np.array([[5, 6]]))) is not catalogue_of(items)


def test_a_large_trie_is_made_without_a_loop_over_items() -> None:
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 256, (250_000, 3), dtype=np.int32)
    ids = np.unique(ids[:, 0] << 16 | ids[:, 1] << 8 | ids[:, 2])
    items = ItemIndex(np.stack([ids >> 16, ids >> 8 & 255, ids & 255], axis=1))
    begin = time.process_time()
    trie = build_trie(items)
    assert time.process_time() - begin < 3
    assert trie.nbytes < 16 * items.num_items + 8 * 65536
    assert trie.degrees[0] == 256
    assert len(trie.token) == 1 + 256 + len(np.unique(ids >> 8)) + items.num_items


@pytest.mark.parametrize(
    ("candidates", "depth"), [([0, 1], 3), ([0, 2], 2), ([0, 3], 1), ([0, 4], 2), ([3, -1], 1), ([-1, -1], 1)]
)
def test_from_where_on_candidates_are_told_apart_is_known_before_the_search(candidates: list[int], depth: int) -> None:
    items = padded([(5, 6, 7), (5, 6, 8), (5, 7, 7), (6, 6, 7), (5,)])
    assert build_candidate_tries(items, np.array([candidates]), beams=1).cut == depth
    # All rows of a batch go the same way.
    assert build_candidate_tries(items, np.array([candidates, [0, 1]]), beams=1).cut == 3
    # All that there is may be read at once.
    assert build_candidate_tries(items, np.array([candidates]), beams=2).cut == 1


def test_a_tenth_more_candidates_than_beams_may_be_read_at_once() -> None:
    # Thirty that differ in their first tokens, and some more like them: twenty beams lead to as many of these at most.
    rows = [(first, second, 0) for first in range(30) for second in range(2)]
    alike = lambda pairs: np.array([[*range(0, 60, 2), *range(1, 2 * pairs, 2)]])  # noqa: E731
    for pairs, depth in ((0, 1), (2, 1), (3, 2)):
        tries = build_candidate_tries(padded(rows), alike(pairs), beams=20)
        assert tries.cut == depth
        assert tries.most == 22
    assert build_candidate_tries(padded(rows), alike(3), beams=30).cut == 1


def test_the_order_of_candidates_of_one_token_is_kept() -> None:
    tries = build_candidate_tries(ItemIndex(np.array([[8], [5], [6]])), np.array([[0, 2, 1]]), beams=2)
    assert tries.table[..., 0].tolist() == [[0, 2, 1]]


@pytest.mark.parametrize("lengths", [(3, 3), (3, 2)])
def test_whether_candidates_differ_in_length_is_known_before_the_search(lengths: tuple[int, ...]) -> None:
    rows = [tuple(range(length)) for length in lengths] if lengths[0] != lengths[1] else [(0, 1, 2), (0, 1, 3)]
    tries = build_candidate_tries(padded(rows), np.array([[0, 1]]), beams=2)
    assert tries.ends == ((False, False, False, True) if lengths == (3, 3) else (False, True, True, True))
