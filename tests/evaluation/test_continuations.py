"""General text continued by two models: what is the same, and which of the new tokens are items."""

import dataclasses

import numpy as np
import pytest

from gems_jax.evaluation.continuations import continuations

VOCABULARY, END, PAD = 10, 1, 0


class Words:
    def decode(self, ids, skip_special_tokens):
        return " ".join(str(int(one)) for one in ids if not (skip_special_tokens and one in (END, PAD)))


@dataclasses.dataclass
class Model:
    layout: str
    config: object


@dataclasses.dataclass
class Config:
    vocab_size: int = VOCABULARY
    pad_token_id: int = PAD


@pytest.fixture
def models(monkeypatch):
    """Two models that write what a test says."""
    written, asked = {}, []

    def greedy(model, inputs, new_tokens):
        asked.append(inputs)
        return np.array(written[id(model)])[:, :new_tokens]

    monkeypatch.setattr("gems_jax.evaluation.continuations.greedy", greedy)

    def make(layout, base, tuned):
        pair = Model(layout, Config()), Model(layout, Config())
        written.update({id(pair[0]): base, id(pair[1]): tuned})
        return *pair, asked

    return make


def test_only_what_the_base_model_wrote_is_compared_and_items_are_counted(models):
    base, tuned, asked = models(
        "decoder", [[4, 5, END, PAD], [6, 7, 8, 9], [0, 0, 0, 0]], [[4, 5, END, PAD], [6, 12, 8, 13], [0, 0, 0, 0]]
    )
    batch = {"input_ids": np.arange(2, 8) * np.ones((4, 1), int), "attention_mask": np.ones((4, 6), int)}
    found = continuations(base, tuned, Words(), batch, rows=3, new_tokens=4)
    assert found["agreement"] == (3 + 2 + 1) / 8
    assert found["unchanged"] == 2 / 3
    assert found["item_tokens"] == 2 / 8
    assert found["texts"][1] == {"prompt": "2 3 4", "base": "6 7 8 9", "tuned": "6 12 8 13"}
    assert asked[0]["input_ids"].shape == (3, 3)


def test_an_encoder_reads_the_whole_input_and_padding_is_no_text(models):
    base, tuned, asked = models("encoder_decoder", [[4, END]], [[4, END]])
    batch = {"input_ids": np.array([[5, 6, 7, 0]]), "attention_mask": np.array([[1, 1, 1, 0]])}
    found = continuations(base, tuned, Words(), batch)
    assert asked[0]["input_ids"].tolist() == [[5, 6, 7, 0]]
    assert found["texts"] == [{"prompt": "5 6 7", "base": "4", "tuned": "4"}]


def test_no_rows_are_refused(models):
    base, tuned, _ = models("decoder", [[4]], [[4]])
    with pytest.raises(ValueError, match="rows must be at least 1, got 0"):
        continuations(base, tuned, Words(), {"input_ids": [[2]], "attention_mask": [[1]]}, rows=0)
