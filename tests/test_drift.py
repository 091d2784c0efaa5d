"""Loss on general text, with and without the added item tokens."""

from typing import Any

import jax
import numpy as np
import pytest

from gems_jax.evaluation.drift import general_loss
from gems_jax.models import T5, T5Config

V, N = 20, 7
SIZES: dict[str, Any] = {
    "d_model": 8,
    "d_kv": 4,
    "d_ff": 16,
    "num_layers": 1,
    "num_decoder_layers": 1,
    "num_heads": 2,
}


@pytest.fixture(scope="module")
def grown() -> T5:
    return T5.create(T5Config(vocab_size=V, num_added_tokens=N, **SIZES), jax.random.key(1))


def batch(seed: int, rows: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, V, (rows, 5)).astype(np.int32)
    return {
        "input_ids": rng.integers(2, V, (rows, 8)).astype(np.int32),
        "attention_mask": (np.arange(8) < rng.integers(3, 9, (rows, 1))).astype(np.int32),
        "decoder_input_ids": np.concatenate([np.zeros((rows, 1), np.int32), labels[:, :-1]], axis=1),
        "labels": labels,
        "label_mask": (np.arange(5) < rng.integers(1, 6, (rows, 1))).astype(np.int32),
    }


def oracle(model: T5, batches: list[dict[str, np.ndarray]], width: int) -> float:
    total, count = 0.0, 0
    for one in batches:
        logits = model(one["input_ids"], one["attention_mask"], decoder_input_ids=one["decoder_input_ids"])
        values = np.asarray(logits, np.float64)[..., :width]
        losses = np.log(np.exp(values).sum(-1)) - np.take_along_axis(values, one["labels"][..., None], -1)[..., 0]
        total += losses[one["label_mask"] > 0].sum()
        count += one["label_mask"].sum()
    return total / count


def test_losses_equal_a_token_weighted_mean_over_each_vocabulary(grown: T5) -> None:
    batches = [batch(0), batch(1), batch(2, rows=2)]
    result = general_loss(grown, batches)
    assert result["loss"] == pytest.approx(oracle(grown, batches, V), rel=1e-5)
    assert result["loss_full"] == pytest.approx(oracle(grown, batches, V + N), rel=1e-5)
    assert result["loss_full"] > result["loss"]
    assert result["perplexity"] == pytest.approx(np.exp(result["loss"]))
    assert result["tokens"] == sum(one["label_mask"].sum() for one in batches)


def test_model_without_added_tokens_has_one_loss() -> None:
    model = T5.create(T5Config(vocab_size=V, **SIZES), jax.random.key(2))
    result = general_loss(model, [batch(0)])
    assert result["loss"] == result["loss_full"]


def test_what_stands_at_masked_positions_does_not_count(grown: T5) -> None:
    clean, dirty = batch(3), batch(3)
    dirty["labels"] = np.where(dirty["label_mask"] > 0, dirty["labels"], 9)
    assert general_loss(grown, [clean])["loss"] == general_loss(grown, [dirty])["loss"]


def test_batches_may_come_from_a_generator_with_progress_shown(grown: T5, capsys: pytest.CaptureFixture[str]) -> None:
    shown = general_loss(grown, (batch(seed) for seed in range(2)), progress=True)
    assert shown == general_loss(grown, [batch(0), batch(1)])
    assert "general text" in capsys.readouterr().err


def test_text_without_a_target_token_is_an_error(grown: T5) -> None:
    empty = batch(0) | {"label_mask": np.zeros((3, 5), np.int32)}
    for batches in ([], [empty]):
        with pytest.raises(ValueError, match="no target token"):
            general_loss(grown, batches)


def test_label_outside_the_base_vocabulary_is_named(grown: T5) -> None:
    wrong = batch(0)
    wrong["labels"][0, 0] = V + 2
    with pytest.raises(ValueError, match=f"batch 1: labels reach from .* to {V + 2}.*tokens 0 to {V - 1}"):
        general_loss(grown, [batch(1), wrong])
