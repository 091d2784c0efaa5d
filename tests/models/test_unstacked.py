"""Models whose layers have arrays of their own: the same numbers, without loops over layers."""

import functools

import jax
import numpy as np
import pytest
from decoder_pairs import ours, ragged_batch, torch_decoder, torch_t5

from gems_jax.items.tokens import ItemIndex
from gems_jax.models import T5, T5Config, greedy, save, unstacked
from gems_jax.models.params import params_of
from gems_jax.ranking.beam_search import beam_search
from gems_jax.ranking.candidate_tries import build_candidate_tries
from gems_jax.ranking.rank_items import rank_items

UMT5 = T5Config(
    vocab_size=61, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_decoder_layers=3, num_heads=4, model_type="umt5"
)  # fmt: skip
ITEMS = ItemIndex(np.array([(a, b, c) for a in (10, 11) for b in (12, 13) for c in (14, 15, 16)]))


@functools.cache
def models(family):
    if family == "umt5":
        model = T5.create(UMT5, jax.random.key(0))
    else:
        model = torch_t5()[1] if family == "t5" else ours(torch_decoder(family))
    return model, unstacked(model)


@functools.cache
def inputs():
    ids, mask = ragged_batch()
    return {"input_ids": ids.astype(np.int32), "attention_mask": mask.astype(np.int32)}


@pytest.mark.parametrize(("family", "restricted"), [("t5", True), ("umt5", False), ("qwen3 window", True)])
def test_they_rank_the_same_items_with_the_same_scores(family, restricted):
    candidates = np.tile(np.arange(9), (3, 1)) if restricted else None
    found = [rank_items(model, inputs(), ITEMS, candidates, k=5, beams=5) for model in models(family)]
    np.testing.assert_array_equal(found[1][0], found[0][0])
    np.testing.assert_allclose(found[1][1], found[0][1], atol=1e-5)


@pytest.mark.parametrize("family", ["umt5", "qwen3 window"])
def test_they_generate_the_same_tokens(family):
    tokens = [greedy(model, inputs(), 6) for model in models(family)]
    np.testing.assert_array_equal(tokens[1], tokens[0])


@pytest.mark.parametrize("family", ["t5", "qwen3 window"])
def test_their_programs_have_no_loop_over_layers(family):
    tries = build_candidate_tries(ITEMS, np.tile(np.arange(9), (3, 1)), beams=5)
    programs = [
        str(jax.make_jaxpr(lambda *given: beam_search(*given, k=5, beams=5, vocabulary="full"))(model, inputs(), tries))
        for model in models(family)
    ]
    assert " scan[" in programs[0]
    assert " scan[" not in programs[1]


def test_the_model_stays_as_it_is_and_shares_its_tables():
    model, apart = models("t5")
    assert "encoder/block/mlp/wo/kernel" in params_of(model)
    kernel = params_of(model)["encoder/block/mlp/wo/kernel"]
    assert kernel.ndim == 3
    np.testing.assert_array_equal(apart.encoder.block[1].mlp.wo.kernel[...], kernel[1])
    assert apart.token_embedding.embedding[...] is model.token_embedding.embedding[...]
    twice = unstacked(apart)
    assert len(twice.encoder.block) == len(apart.encoder.block)


def test_they_are_not_saved(tmp_path):
    with pytest.raises(ValueError, match=r"unstacked\(\) is for generating: save the model it was made of"):
        save(models("t5")[1], None, tmp_path / "model")
    assert not (tmp_path / "model").exists()
