"""Ranking items of one token each against scoring every item in full, and against a beam search in PyTorch."""

import re
from typing import Any

import jax
import numpy as np
import pytest
import torch
from flax import nnx
from transformers import T5Config as TorchConfig
from transformers import T5ForConditionalGeneration

from gems_jax.items.tokens import ItemIndex
from gems_jax.leaf_path import leaf_path
from gems_jax.models import T5, T5Config
from gems_jax.ranking.rank_items import rank_items

V, N, D = 30, 40, 16
CONFIG = T5Config(
    vocab_size=V,
    num_added_tokens=N,
    d_model=D,
    d_kv=8,
    d_ff=24,
    num_layers=2,
    num_decoder_layers=2,
    num_heads=2,
)


@pytest.fixture(scope="module")
def model() -> T5:
    return T5.create(CONFIG, jax.random.key(0))


@pytest.fixture(scope="module")
def items() -> ItemIndex:
    return ItemIndex(V + np.arange(N, dtype=np.int32)[:, None])


@pytest.fixture(scope="module")
def inputs() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    lengths = np.array([9, 4, 7, 2])
    mask = (np.arange(9) < lengths[:, None]).astype(np.int32)
    return {"input_ids": (rng.integers(2, V + N, (4, 9)) * mask).astype(np.int32), "attention_mask": mask}


@pytest.fixture(scope="module")
def candidates() -> np.ndarray:
    rng = np.random.default_rng(1)
    rows = np.stack([rng.permutation(N)[:25] for _ in range(4)]).astype(np.int32)
    rows[1, 12:] = -1
    rows[3, ::2] = -1
    return rows


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


@pytest.fixture(scope="module")
def logits_of_all(model: T5, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Logits ``[B, 2, V + N]`` behind the start token and behind each item, decoded in full on its own."""
    rows = len(inputs["input_ids"])
    decode = jax.jit(lambda prefix: model(**inputs, decoder_input_ids=prefix))
    return [np.asarray(decode(np.array([[0, V + item]] * rows, np.int32)), np.float64) for item in range(N)]


def scores_of_all(logits_of_all: list[np.ndarray], vocabulary: str) -> tuple[np.ndarray, np.ndarray]:
    """log p(item) and the mean of it and log p(end | item), ``[B, N]``."""
    first, both = [], []
    for item, logits in enumerate(logits_of_all):
        if vocabulary == "items":
            logits = np.concatenate([logits[..., 1:2], logits[..., V:]], axis=-1)
        log_probs = log_softmax(logits)
        place, end = (item + 1, 0) if vocabulary == "items" else (V + item, 1)
        first.append(log_probs[:, 0, place])
        both.append((log_probs[:, 0, place] + log_probs[:, 1, end]) / 2)
    return np.stack(first, 1), np.stack(both, 1)


def brute_force(
    first: np.ndarray, both: np.ndarray, candidates: np.ndarray | None, k: int, beams: int
) -> tuple[np.ndarray, np.ndarray]:
    ids, scores = np.full((len(first), k), -1), np.full((len(first), k), -np.inf)
    for row in range(len(first)):
        allowed = np.arange(N) if candidates is None else candidates[row][candidates[row] >= 0]
        kept = allowed[np.argsort(-first[row, allowed], kind="stable")[:beams]]
        best = kept[np.argsort(-both[row, kept], kind="stable")[:k]]
        ids[row, : len(best)], scores[row, : len(best)] = best, both[row, best]
    return ids, scores


@pytest.mark.parametrize("vocabulary", ["full", "items"])
@pytest.mark.parametrize("restricted", [True, False])
def test_ranking_equals_decoding_every_item_in_full(
    model: T5,
    items: ItemIndex,
    inputs: dict[str, np.ndarray],
    candidates: np.ndarray,
    logits_of_all: list[np.ndarray],
    vocabulary: Any,
    restricted: bool,
) -> None:
    chosen = candidates if restricted else None
    first, both = scores_of_all(logits_of_all, vocabulary)
    for k, beams in ((20, 20), (5, 8)) if restricted else ((5, 8),):
        ids, scores = rank_items(model, inputs, items, chosen, k=k, beams=beams, vocabulary=vocabulary)
        expected_ids, expected_scores = brute_force(first, both, chosen, k, beams)
        assert ids.shape == scores.shape == (4, k)
        assert ids.dtype == np.int32
        assert scores.dtype == np.float32
        np.testing.assert_array_equal(ids, expected_ids)
        np.testing.assert_allclose(scores, expected_scores, atol=2e-5)


def to_torch(model: T5) -> T5ForConditionalGeneration:
    """The same weights in transformers' model, by its own names."""
    leaves = {
        leaf_path(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(nnx.state(model)))
    }
    config = TorchConfig(
        vocab_size=V + N, d_model=D, d_kv=8, d_ff=24, num_layers=2, num_decoder_layers=2, num_heads=2,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False, decoder_start_token_id=0, dropout_rate=0.0,
    )  # fmt: skip
    other = T5ForConditionalGeneration(config)
    embedding = np.concatenate([leaves["token_embedding/embedding"], leaves["item_embedding/embedding"]])
    # Built without a checkpoint, transformers' T5 shares head and embedding whatever its config says.
    other.lm_head.weight = torch.nn.Parameter(torch.empty(V + N, D))
    head = np.concatenate([leaves["lm_head/embedding"], leaves["item_head/embedding"]])
    attention = {"SelfAttention": "self_attention", "EncDecAttention": "cross_attention"}
    weights = {}
    for name in other.state_dict():
        stack = name.split(".")[0]
        if name == "lm_head.weight":
            value = head
        elif "embed_tokens" in name or name == "shared.weight":
            value = embedding
        elif "relative_attention_bias" in name:
            value = leaves[f"{stack}/relative_bias/embedding"]
        elif name.endswith("final_layer_norm.weight"):
            value = leaves[f"{stack}/final_norm/scale"]
        else:
            match = re.fullmatch(r"(\w+)\.block\.(\d+)\.layer\.(\d)\.(.+)\.weight", name)
            assert match
            layer, sublayer, rest = int(match[2]), int(match[3]), match[4].split(".")
            part = "attention" if stack == "encoder" else ["self_attention", "cross_attention"][sublayer % 2]
            if sublayer == (1 if stack == "encoder" else 2):
                part = "mlp"
            if rest[0] == "layer_norm":
                value = leaves[f"{stack}/block/{part}_norm/scale"][layer]
            else:
                assert stack == "encoder" or part == "mlp" or attention[rest[0]] == part
                value = leaves[f"{stack}/block/{part}/{rest[1]}/kernel"][layer].T
        weights[name] = torch.tensor(np.array(value))
    other.load_state_dict(weights)
    return other.eval()


def test_ranking_equals_a_constrained_beam_search_in_pytorch(
    model: T5, items: ItemIndex, inputs: dict[str, np.ndarray], candidates: np.ndarray
) -> None:
    other = to_torch(model)
    beams = 10
    ids, scores = rank_items(model, inputs, items, candidates, k=beams, beams=beams)
    for row in range(4):
        allowed = [V + int(item) for item in candidates[row] if item >= 0]
        with torch.no_grad():
            found = other.generate(
                input_ids=torch.tensor(inputs["input_ids"][row : row + 1]).long(),
                attention_mask=torch.tensor(inputs["attention_mask"][row : row + 1]).long(),
                num_beams=beams,
                num_return_sequences=beams,
                max_new_tokens=2,
                prefix_allowed_tokens_fn=lambda _, prefix, allowed=allowed: allowed if len(prefix) == 1 else [1],
                output_scores=True,
                return_dict_in_generate=True,
            )
        np.testing.assert_array_equal(ids[row], found.sequences[:, 1].numpy() - V)
        np.testing.assert_allclose(scores[row], found.sequences_scores.numpy(), atol=6e-5)


def test_rows_do_not_influence_each_other_and_padding_does_not_count(
    model: T5, items: ItemIndex, inputs: dict[str, np.ndarray], candidates: np.ndarray
) -> None:
    ids, scores = rank_items(model, inputs, items, candidates, k=5, beams=20)
    alone = {key: value[1:2, :4] for key, value in inputs.items()}
    ids_alone, scores_alone = rank_items(model, alone, items, candidates[1:2, :12], k=5, beams=20)
    np.testing.assert_array_equal(ids[1:2], ids_alone)
    np.testing.assert_allclose(scores[1:2], scores_alone, atol=1e-5)


def test_rows_with_too_few_candidates_end_in_padding(
    model: T5, items: ItemIndex, inputs: dict[str, np.ndarray]
) -> None:
    few = np.array([[3, -1], [-1, -1], [5, 6], [-1, 7]])
    ids, scores = rank_items(model, inputs, items, few, k=4)
    assert (np.asarray(ids) >= 0).sum(1).tolist() == [1, 0, 2, 1]
    assert ids[3].tolist() == [7, -1, -1, -1]
    assert (np.isneginf(scores) == (np.asarray(ids) < 0)).all()


def test_more_beams_change_which_items_get_the_second_step(
    model: T5, items: ItemIndex, inputs: dict[str, np.ndarray], logits_of_all: list[np.ndarray]
) -> None:
    first, both = scores_of_all(logits_of_all, "full")
    # One beam keeps the most probable item token, all beams the item of the best final score.
    assert rank_items(model, inputs, items, k=1, beams=1)[0][:, 0].tolist() == first.argmax(1).tolist()
    assert rank_items(model, inputs, items, k=1, beams=N)[0][:, 0].tolist() == both.argmax(1).tolist()


def test_items_may_be_in_any_order(model: T5, items: ItemIndex, inputs: dict[str, np.ndarray]) -> None:
    order = np.random.default_rng(2).permutation(N)
    shuffled = ItemIndex(np.asarray(items.token_ids)[order])
    ids, scores = rank_items(model, inputs, items, k=6)
    other_ids, other_scores = rank_items(model, inputs, shuffled, k=6)
    np.testing.assert_array_equal(order[np.asarray(other_ids)], ids)
    np.testing.assert_allclose(other_scores, scores, atol=1e-6)


def test_absent_attention_mask_means_that_every_token_counts(model: T5, items: ItemIndex) -> None:
    ids = np.array([[5, 6, 7]], np.int32)
    with_mask = rank_items(model, {"input_ids": ids, "attention_mask": np.ones_like(ids)}, items, k=3)
    without = rank_items(model, {"input_ids": ids}, items, k=3)
    np.testing.assert_array_equal(with_mask[0], without[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "at least 1"),
        ({"k": 30, "beams": 20}, "k=30 results need as many beams"),
        ({"vocabulary": "half"}, "vocabulary must be one of"),
        ({"candidates": np.array([[0, N]] * 4)}, f"item numbers are 0 to {N - 1}"),
        ({"candidates": np.array([[0, -2]] * 4)}, "from -2"),
        ({"candidates": np.array([[0, 1]])}, r"\[4, C\]"),
        ({"candidates": np.array([[0.0, 1.0]] * 4)}, "float64"),
        ({"candidates": np.array([[0, 1], [2, 2], [0, 1], [0, 1]])}, "row 1: an item stands there twice"),
        ({"items": ItemIndex(np.array([[V, 1], [V, V + 2]], np.int32))}, "end token 1"),
        ({"items": ItemIndex(np.array([[V, 1]], np.int32)), "candidates": np.zeros((4, 1), int)}, "end token 1"),
        ({"items": ItemIndex(np.array([[V + N]], np.int32))}, "grow the model"),
        ({"items": ItemIndex(np.array([[4]], np.int32)), "vocabulary": "items"}, "grow the model"),
        ({"inputs": {"attention_mask": np.ones((4, 9))}}, "input_ids"),
        ({"inputs": {"input_ids": np.ones((4, 9)), "attention_mask": np.ones((4, 8))}}, r"\[B, S\]"),
    ],
)
def test_bad_input_is_named(
    model: T5, items: ItemIndex, inputs: dict[str, np.ndarray], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        rank_items(**({"model": model, "inputs": inputs, "items": items} | change))
