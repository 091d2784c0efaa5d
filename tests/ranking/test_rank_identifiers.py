"""Ranking by identifiers of several tokens, both families: against transformers' constrained beam search on torch, and
against scoring every item in full."""

import dataclasses
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import numpy as np
import pytest
import torch
from decoder_pairs import ours, ragged_batch, torch_decoder, torch_t5
from hypothesis import given, settings
from hypothesis import strategies as st

from gems_jax.items.tokens import ItemIndex
from gems_jax.models.params import params_of
from gems_jax.ranking import beam_search as beam_search_module
from gems_jax.ranking import candidate_tries
from gems_jax.ranking.beam_search import beam_search
from gems_jax.ranking.candidate_tries import build_candidate_tries
from gems_jax.ranking.rank_items import rank_items

FAMILIES = ("t5", "llama-2", "qwen3 window")
CODES = np.arange(10, 40)


@pytest.fixture(scope="module")
def pairs() -> dict[str, tuple[Any, Any]]:
    """A model of transformers with random weights, and ours with the same."""
    decoders = {name: torch_decoder(name) for name in FAMILIES[1:]}
    return {"t5": torch_t5()} | {name: (model, ours(model)) for name, model in decoders.items()}


@pytest.fixture(scope="module")
def inputs() -> dict[str, np.ndarray]:
    """Three rows, padded on the left, on the right, and not at all."""
    ids, mask = ragged_batch()
    return {"input_ids": ids.astype(np.int32), "attention_mask": mask.astype(np.int32)}


def identifiers(kind: str) -> ItemIndex:
    rng = np.random.default_rng(3)
    if kind == "one token":
        return ItemIndex(rng.permutation(CODES)[:, None])
    if kind == "three levels":
        return ItemIndex(np.unique(CODES[rng.integers(0, [4, 6, 8], (60, 3))], axis=0)[::-1])
    if kind == "told apart by two":  # and one token, two or four
        pairs = CODES[rng.permutation(36)[:24, None] // [6, 1] % 6]
        ends = np.where(np.arange(24)[:, None] % 3 > 0, CODES[rng.integers(0, 6, (24, 2))], -1)
        short = [[CODES[8], -1, -1, -1], [CODES[9], -1, -1, -1]]
        return ItemIndex(np.concatenate([np.concatenate([pairs, ends], axis=1), short]))
    rows = {tuple(CODES[rng.integers(0, 4, length)].tolist()) for length in (1, 2, 3, 4) for _ in range(12)}
    return ItemIndex(np.array([row + (-1,) * (4 - len(row)) for row in sorted(rows, reverse=True)]))


def spelled(items: ItemIndex) -> dict[tuple[int, ...], int]:
    return {tuple(token for token in row if token >= 0): n for n, row in enumerate(items.token_ids.tolist())}


def generate(
    model: Any, prompt: np.ndarray, allowed: dict[tuple[int, ...], int], end: int, **options: Any
) -> tuple[list[int], np.ndarray]:
    """Items and scores of transformers' beam search that allows nothing else."""
    begin = 1 if model.config.is_encoder_decoder else len(prompt)
    follow: dict[tuple[int, ...], set[int]] = {}
    for tokens in allowed:
        for place, token in enumerate((*tokens, end)):
            follow.setdefault(tokens[:place], set()).add(token)
    with torch.no_grad():
        found = model.generate(
            input_ids=torch.tensor(prompt[None]).long(),
            attention_mask=torch.ones((1, len(prompt)), dtype=torch.long),
            max_new_tokens=max(map(len, allowed)) + 1,
            # What it makes of beams that have nowhere to go is thrown away below.
            prefix_allowed_tokens_fn=lambda _, tokens: list(follow.get(tuple(tokens[begin:].tolist()), {end})),
            do_sample=False,
            length_penalty=1.0,
            eos_token_id=end,
            pad_token_id=0,
            output_scores=True,
            return_dict_in_generate=True,
            **options,
        )
    items, scores = [], []
    for tokens, score in zip(found.sequences[:, begin:].tolist(), found.sequences_scores.tolist(), strict=True):
        if score > -1e8:
            items.append(allowed[tuple(tokens[: tokens.index(end)])])
            scores.append(score)
    return items, np.array(scores)


CASES = [
    ("t5", "three levels", 8, False),
    ("t5", "different lengths", 8, True),
    ("t5", "three levels", 100, True),
    ("t5", "three levels", 100, False),
    ("llama-2", "one token", 12, False),
    ("qwen3 window", "one token", 12, True),
    ("llama-2", "different lengths", 8, False),
    ("qwen3 window", "three levels", 8, True),
    ("t5", "told apart by two", 8, True),
    ("t5", "told apart by two", 30, True),
    ("llama-2", "told apart by two", 8, True),
    ("qwen3 window", "told apart by two", 30, True),
]


@pytest.mark.parametrize(("family", "kind", "beams", "restricted"), CASES)
def test_items_and_scores_are_those_of_a_constrained_beam_search_in_pytorch(
    pairs: dict[str, Any], inputs: dict[str, np.ndarray], family: str, kind: str, beams: int, restricted: bool
) -> None:
    other, model = pairs[family]
    items = identifiers(kind)
    names = spelled(items)
    rng = np.random.default_rng(0)
    candidates = np.stack([rng.permutation(items.num_items)[:20] for _ in range(3)]) if restricted else None
    if candidates is not None:
        candidates[1, 5:] = -1
    ids, scores = rank_items(model, inputs, items, candidates, k=min(beams, 20), beams=beams)
    for row in range(3):
        prompt = inputs["input_ids"][row][inputs["attention_mask"][row] > 0]
        chosen = {n for n in (range(items.num_items) if candidates is None else candidates[row]) if n >= 0}
        allowed = {tokens: n for tokens, n in names.items() if n in chosen}
        expected, expected_scores = generate(
            other, prompt, allowed, model.config.eos_token_id, num_beams=beams,
            num_return_sequences=min(beams, 20), early_stopping="never",
        )  # fmt: skip
        found = np.asarray(ids[row])
        assert found[found >= 0].tolist() == expected
        assert len(expected) == min(beams, 20, len(chosen))
        np.testing.assert_allclose(np.asarray(scores[row])[found >= 0], expected_scores, atol=1e-4)
        assert np.isneginf(np.asarray(scores[row])[found < 0]).all()


def full_scores(model: Any, family: str, inputs: dict[str, np.ndarray], items: ItemIndex, row: int) -> np.ndarray:
    """Mean log-probability of every item's tokens and the end token, each decoded in full, in float64."""
    prompt = inputs["input_ids"][row][inputs["attention_mask"][row] > 0]
    end, width = model.config.eos_token_id, items.token_ids.shape[1] + 1
    answers = np.full((items.num_items, width), 0, np.int32)
    mask = np.zeros((items.num_items, width))
    for tokens, n in spelled(items).items():
        answers[n, : len(tokens) + 1] = (*tokens, end)
        mask[n, : len(tokens) + 1] = 1
    prompts = np.tile(prompt, (items.num_items, 1))
    if family == "t5":
        logits = model(prompts, decoder_input_ids=np.pad(answers, ((0, 0), (1, 0)))[:, :-1])
    else:
        logits = model(np.concatenate([prompts, answers], axis=1))[:, len(prompt) - 1 : -1]
    logits = np.asarray(logits, np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    taken = np.take_along_axis(log_probs, answers[..., None], axis=2)[..., 0]
    return (taken * mask).sum(1) / mask.sum(1)


@pytest.mark.parametrize("family", ["t5", "qwen3 window"])
def test_beams_for_all_items_find_the_best_of_all(
    pairs: dict[str, Any], inputs: dict[str, np.ndarray], family: str
) -> None:
    items = identifiers("different lengths")
    model = pairs[family][1]
    ids, scores = rank_items(model, inputs, items, k=10, beams=4**4)
    for row in range(3):
        expected = full_scores(model, family, inputs, items, row)
        np.testing.assert_array_equal(ids[row], np.argsort(-expected)[:10])
        np.testing.assert_allclose(scores[row], np.sort(expected)[::-1][:10], atol=1e-5)


def decoder_passes(model: Any, inputs: dict[str, np.ndarray], items: ItemIndex, candidates: list[int]) -> int:
    """How often a search goes through the decoder's layers: their loops in its program, less those of the input."""
    tries = build_candidate_tries(items, np.tile(candidates, (3, 1)), beams=1)
    program = jax.make_jaxpr(
        lambda model, inputs, tries: beam_search(model, inputs, tries, k=1, beams=1, vocabulary="full")
    )(model, inputs, tries)
    return str(program).count(" scan[")


@pytest.mark.parametrize("family", ["t5", "llama-2"])
def test_what_is_left_of_identifiers_that_are_told_apart_is_read_in_one_pass(
    pairs: dict[str, Any], inputs: dict[str, np.ndarray], family: str
) -> None:
    model = pairs[family][1]
    rows = [(10, 11, 12, 13), (10, 11, 12, 14), (10, 11, 13, 12), (10, 12, 12, 12), (11, 11, 12, 13)]
    items = ItemIndex(np.array(rows))
    passes = [decoder_passes(model, inputs, items, pair) for pair in ([0, 1], [0, 2], [0, 3], [0, 4])]
    # Of two that differ in the last token all are chosen one by one; of two that differ in the first, one is.
    assert np.diff(passes).tolist() == [-1, -1, -1]


ITEMS, CANDIDATES, LEVELS = 14, 9, 3
random_identifiers = st.sets(
    st.lists(st.integers(10, 13), min_size=1, max_size=LEVELS).map(tuple), min_size=ITEMS, max_size=ITEMS
)


@settings(max_examples=20)
@given(
    rows=random_identifiers,
    data=st.data(),
    family=st.sampled_from(["t5", "qwen3 window"]),
    how=st.sampled_from([(2, 0.1), (2, 2.0), (50, 0.1)]),
)
def test_no_item_is_ever_found_that_is_not_a_candidate(
    pairs: dict[str, Any],
    inputs: dict[str, np.ndarray],
    rows: set[tuple[int, ...]],
    data: Any,
    family: str,
    how: tuple[int, float],
) -> None:
    """Where many more items than beams may be read at once, too: choices are made among what was read then."""
    beams, more = how
    items = ItemIndex(np.array([row + (-1,) * (LEVELS - len(row)) for row in rows]))
    draw: Callable[[], list[int]] = lambda: data.draw(  # noqa: E731
        st.lists(st.integers(0, ITEMS - 1), unique=True, max_size=CANDIDATES)
    )
    candidates = np.array([chosen + [-1] * (CANDIDATES - len(chosen)) for chosen in (draw(), draw(), draw())])
    other, model = pairs[family]
    with mock.patch.object(candidate_tries, "_MORE", more):
        ids, scores = (np.asarray(array) for array in rank_items(model, inputs, items, candidates, k=2, beams=beams))
    for row in range(3):
        real = candidates[row][candidates[row] >= 0]
        found = ids[row][ids[row] >= 0]
        assert len(found) == len(set(found.tolist())) == min(2, len(real))
        assert set(found.tolist()) <= set(real.tolist())
        assert (np.isneginf(scores[row]) == (ids[row] < 0)).all()
        assert (np.diff(scores[row][: len(found)]) <= 0).all()
    # The row that is not padded; with a beam a candidate both searches are exhaustive, so torch's need not be wider.
    allowed = {tokens: n for tokens, n in spelled(items).items() if n in candidates[2]}
    if allowed:
        expected, expected_scores = generate(
            other, inputs["input_ids"][2], allowed, model.config.eos_token_id,
            num_beams=min(beams, ITEMS), num_return_sequences=2, early_stopping="never",
        )  # fmt: skip
        assert ids[2][ids[2] >= 0].tolist() == expected
        np.testing.assert_allclose(scores[2][: len(expected)], expected_scores, atol=1e-4)


@settings(max_examples=3)
@given(rows=random_identifiers, beams=st.sampled_from([3, 100]))
def test_no_item_is_ever_found_that_is_not_in_the_catalogue(
    pairs: dict[str, Any], inputs: dict[str, np.ndarray], rows: set[tuple[int, ...]], beams: int
) -> None:
    items = ItemIndex(np.array([row + (-1,) * (LEVELS - len(row)) for row in rows]))
    model = pairs["t5"][1]
    k = min(beams, ITEMS + 3)
    ids, scores = (np.asarray(array) for array in rank_items(model, inputs, items, k=k, beams=beams))
    for row in range(3):
        found = ids[row][ids[row] >= 0]
        assert len(found) == len(set(found.tolist())) == min(k, ITEMS)
        assert found.max() < ITEMS
        assert np.isneginf(scores[row][len(found) :]).all()
    expected = full_scores(model, "t5", inputs, items, 0)
    found = ids[0][ids[0] >= 0]
    np.testing.assert_allclose(scores[0][: len(found)], expected[found], atol=1e-5)


@pytest.mark.parametrize("family", ["t5", "llama-2"])
def test_bfloat16_gives_nearly_the_same_scores(
    pairs: dict[str, Any], inputs: dict[str, np.ndarray], family: str
) -> None:
    model, items = pairs[family][1], identifiers("three levels")
    half = type(model).from_params(dataclasses.replace(model.config, dtype="bfloat16"), params_of(model))
    everything = np.tile(np.arange(21), (3, 1))
    ids, scores = rank_items(model, inputs, items, everything, k=21, beams=21)
    half_ids, half_scores = rank_items(half, inputs, items, everything, k=21, beams=21)
    expected = np.take_along_axis(np.asarray(scores), np.argsort(ids, axis=1), axis=1)
    found = np.take_along_axis(np.asarray(half_scores), np.argsort(half_ids, axis=1), axis=1)
    np.testing.assert_allclose(found, expected, atol=0.1)
    assert not np.array_equal(found, expected)


def test_rows_taken_in_turns_for_want_of_memory_give_the_same(
    pairs: dict[str, Any], inputs: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    items = identifiers("three levels")
    candidates = np.tile(np.arange(21), (3, 1))
    together = rank_items(pairs["t5"][1], inputs, items, candidates, k=7, beams=7)
    monkeypatch.setattr(beam_search_module, "_MAX_LOGITS", 2 * 7 * 61)
    beam_search_module.beam_search.clear_cache()
    in_turns = rank_items(pairs["t5"][1], inputs, items, candidates, k=7, beams=7)
    beam_search_module.beam_search.clear_cache()
    np.testing.assert_array_equal(in_turns[0], together[0])
    np.testing.assert_allclose(in_turns[1], together[1], atol=1e-6)


@pytest.mark.parametrize("family", ["t5", "qwen3 window"])
def test_other_candidates_and_inputs_take_no_new_program(
    pairs: dict[str, Any], inputs: dict[str, np.ndarray], family: str
) -> None:
    items = ItemIndex(np.array([[first, second, -1] for first in (10, 11, 12) for second in (-1, 10, 11, 12)]))
    rng = np.random.default_rng(5)
    draw = lambda: np.stack([rng.permutation(items.num_items)[:CANDIDATES] for _ in range(3)])  # noqa: E731
    rank_items(pairs[family][1], inputs, items, draw(), k=2, beams=2)
    programs = beam_search_module.beam_search._cache_size()
    turned = {name: value[::-1] for name, value in inputs.items()}
    rank_items(pairs[family][1], turned, items, draw(), k=2, beams=2)
    assert beam_search_module.beam_search._cache_size() == programs


def test_a_model_without_an_end_token_cannot_rank(pairs: dict[str, Any], inputs: dict[str, np.ndarray]) -> None:
    model = ours(pairs["llama-2"][0], eos_token_id=None)
    with pytest.raises(ValueError, match="end token"):
        rank_items(model, inputs, identifiers("one token"))


def test_no_candidates_at_all_give_no_items(pairs: dict[str, Any], inputs: dict[str, np.ndarray]) -> None:
    ids, scores = rank_items(pairs["t5"][1], inputs, identifiers("three levels"), np.zeros((3, 0), int), k=2, beams=2)
    assert (np.asarray(ids) == -1).all()
    assert np.isneginf(scores).all()
