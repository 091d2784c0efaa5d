"""Token by token, with a cache: what transformers generates, and what the whole text at once gives."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from decoder_pairs import ours, ragged_batch, random_decoder, torch_decoder, torch_t5

from gems_jax.models.decoder.model import Decoder, DecoderConfig
from gems_jax.models.generate import greedy
from gems_jax.models.params import params_of

_NEW = 8
_ONE_LAYER = DecoderConfig(vocab_size=20, d_model=8, d_ff=12, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=4)


@functools.cache
def _pair(name):
    reference = torch_decoder(name)
    return reference, ours(reference)


def _left(ids, mask):
    """The same texts, all padded on the left."""
    rows = [np.concatenate([row[real == 0], row[real > 0]]) for row, real in zip(ids, mask, strict=True)]
    return np.array(rows), np.sort(mask, axis=1)


def _generate(model, ids, mask, **options):
    """What transformers appends, as many columns as asked for."""
    with torch.no_grad():
        found = model.generate(
            input_ids=torch.tensor(ids),
            attention_mask=torch.tensor(mask),
            max_new_tokens=_NEW,
            do_sample=False,
            num_beams=1,
            **options,
        ).numpy()
    new = found[:, 1:] if model.config.is_encoder_decoder else found[:, ids.shape[1] :]
    return np.pad(new, ((0, 0), (0, _NEW - new.shape[1])), constant_values=model.config.pad_token_id)


@pytest.mark.parametrize("name", ["llama-3 tied", "qwen2 window", "qwen3 window"])
def test_decoders_generate_the_tokens_of_transformers_with_padding_on_either_side(name):
    reference, model = _pair(name)
    ids, mask = ragged_batch()
    expected = _generate(reference, *_left(ids, mask))
    np.testing.assert_array_equal(greedy(model, {"input_ids": ids, "attention_mask": mask}, _NEW), expected)
    np.testing.assert_array_equal(_generate(reference, *_left(ids, mask), use_cache=False), expected)


def test_texts_end_with_any_of_the_stop_tokens_and_then_padding():
    reference = torch_decoder("mistral")
    ids, mask = ragged_batch()
    free = _generate(reference, *_left(ids, mask))
    stops = (int(free[0, 1]), int(free[1, 2]))
    stopping = ours(reference, eos_token_id=stops[0], more_stop_ids=stops[1:])
    found = np.asarray(greedy(stopping, {"input_ids": ids, "attention_mask": mask}, _NEW))
    np.testing.assert_array_equal(found, _generate(reference, *_left(ids, mask), eos_token_id=list(stops)))
    assert (found[0, 2:] == stopping.config.pad_token_id).all()
    assert (free[0, 2:] != stopping.config.pad_token_id).any()


@pytest.mark.parametrize("place", [0, 1, 2])
def test_each_of_several_stop_tokens_ends_a_text_by_itself(place):
    model = random_decoder(_ONE_LAYER)
    inputs = {"input_ids": jnp.array([[3, 4]])}
    free = np.asarray(greedy(model, inputs, 4, stop_ids=()))[0].tolist()
    # Tokens that do not come, and the one that comes first, at any place among them.
    others = [token for token in range(20) if token not in free][:2]
    stops = (*others[:place], free[0], *others[place:])
    ended = [free[0], 0, 0, 0]
    assert greedy(model, inputs, 4, stop_ids=stops).tolist() == [ended]
    config = dataclasses.replace(_ONE_LAYER, eos_token_id=stops[0], more_stop_ids=stops[1:])
    configured = Decoder.from_params(config, params_of(model))
    assert greedy(configured, inputs, 4).tolist() == [ended]


def test_stop_tokens_of_a_call_are_taken_instead_of_the_configs():
    model = random_decoder(_ONE_LAYER)
    inputs = {"input_ids": jnp.array([[3, 4]])}
    free = np.asarray(greedy(model, inputs, 3, stop_ids=()))
    assert greedy(model, inputs, 3, stop_ids=(int(free[0, 0]),)).tolist() == [[int(free[0, 0]), 0, 0]]


def test_t5_generates_the_tokens_of_transformers():
    reference, model = torch_t5()
    ids, mask = ragged_batch()
    found = greedy(model, {"input_ids": ids, "attention_mask": mask}, _NEW)
    np.testing.assert_array_equal(found, _generate(reference, ids, mask))


def test_less_than_one_token_is_refused():
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1, got 0"):
        greedy(random_decoder(_ONE_LAYER), {"input_ids": jnp.ones((1, 2), int)}, 0)


@pytest.mark.parametrize("name", ["qwen3 window", "qwen2 tied, yarn"])
def test_logits_from_the_cache_are_those_of_the_whole_text(name):
    model = _pair(name)[1]
    ids, mask = _left(*ragged_batch())
    whole = np.asarray(jax.jit(model)(ids, mask))
    start = jax.jit(lambda inputs: model.start(inputs, 6))
    logits, cache = start({"input_ids": ids[:, :6], "attention_mask": mask[:, :6]})
    np.testing.assert_allclose(logits, whole[:, 5], atol=1e-4)
    step = jax.jit(model.step)
    for place in (6, 7):
        logits, cache = step(jnp.asarray(ids[:, place]), cache)
        np.testing.assert_allclose(logits, whole[:, place], atol=1e-4)
    hidden, cache = jax.jit(model.extend)(jnp.asarray(ids[:, 8:]), cache)
    np.testing.assert_allclose(model.logits(hidden), whole[:, 8:], atol=1e-4)


def test_rows_of_a_cache_can_be_taken_again_and_in_another_order():
    model = _pair("qwen3 window")[1]
    ids, mask = ragged_batch()
    _, cache = jax.jit(lambda inputs: model.start(inputs, 2))({"input_ids": ids, "attention_mask": mask})
    rows, tokens, step = jnp.array([2, 0, 0, 1]), jnp.array([5, 6, 7]), jax.jit(model.step)
    expected, _ = step(tokens, cache)
    found, after = step(tokens[rows], cache.take(rows))
    np.testing.assert_allclose(found, expected[rows], atol=1e-5)
    assert after.keys.shape[1] == len(rows)
