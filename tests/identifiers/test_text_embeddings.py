"""Texts as means of a model's own final states, whatever else is in the batch."""

from typing import Any

import jax
import numpy as np
import pytest

from gems_jax.data.text.small_tokenizer import train_tokenizer
from gems_jax.identifiers import text_embeddings as module
from gems_jax.identifiers.text_embeddings import text_embeddings
from gems_jax.models import from_config

TEXTS = ["red lamp", "green garden chair and a small red lamp", "", "desk", "lamp red", "green chair " * 90]
SIZES = {
    "t5": {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2},
    "qwen3": {
        "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 4,
        "num_key_value_heads": 1, "eos_token_id": 1, "pad_token_id": 0,
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", ["t5", "qwen3"])
def test_an_item_is_the_mean_of_its_tokens_states_in_any_company(kind: str, monkeypatch: Any) -> None:
    tokenizer = train_tokenizer([" ".join(TEXTS)] * 3, vocab_size=400)
    config = {"model_type": kind, "vocab_size": len(tokenizer), **SIZES[kind]}
    model = from_config(config, jax.random.key(0))
    monkeypatch.setattr(module, "MOST_TOKENS", 16)
    rows = text_embeddings(model, tokenizer, TEXTS)
    for row, text in zip(rows, TEXTS, strict=True):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids = [*ids[:15], tokenizer.eos_token_id] if kind == "t5" else ids[:16]
        if not ids:
            assert not row.any()
            continue
        states = model.text_hidden(np.array([ids]), np.ones((1, len(ids)), np.int32))
        np.testing.assert_allclose(row, np.asarray(states[0]).mean(0), rtol=2e-5, atol=2e-6)
    assert np.abs(rows[0] - rows[4]).max() > 1e-3  # the same words in another order
