"""What a search holds of long prompts: one set of keys and values a row, however many beams read them."""

import jax
import jax.numpy as jnp
import pytest

from gems_jax.models import T5, Decoder, DecoderConfig, T5Config

ROWS, LENGTH, BEAMS = 2, 2048, 256
HEADS, WIDTH = 2, 64
TINY = {"vocab_size": 16, "d_model": 8, "d_ff": 8, "num_layers": 2, "num_heads": HEADS}


def decoder():
    config = DecoderConfig(**TINY, num_kv_heads=1, head_dim=WIDTH, eos_token_id=1)
    return Decoder.create(config, jax.random.key(0)), 1


def t5():
    return T5.create(T5Config(**TINY, num_decoder_layers=2, d_kv=WIDTH), jax.random.key(0)), HEADS


@pytest.mark.parametrize("make", [decoder, t5])
def test_beams_share_the_keys_and_values_of_their_rows_prompt(make):
    model, kv_heads = make()
    # Of shapes alone: nothing is computed.
    given = {name: jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.int32) for name in ("input_ids", "attention_mask")}
    _, begun = jax.eval_shape(model.start_beams, given)

    def go_on(beams, parents, tokens):
        return beams.take(parents).step(model, tokens)[1]

    parents, tokens_read = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((ROWS, BEAMS), (ROWS, BEAMS, 1)))
    after = jax.eval_shape(go_on, begun, parents, tokens_read)
    one = 4 * 2 * 2 * kv_heads * WIDTH  # bytes of a token's keys and values in two layers
    kept = [sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(beams)) for beams in (begun, after)]
    prompts, tokens = ROWS * LENGTH * one, ROWS * BEAMS * one
    assert prompts <= kept[0] < 1.1 * prompts
    # A token of each beam is all that comes to it.
    assert tokens <= kept[1] - kept[0] < 1.1 * tokens

    # Nor are they copied on the way: what the compiled step needs beside is less than half of what a copy for each beam
    # would be, in one of the two layers.
    program = jax.jit(go_on).lower(begun, parents, tokens_read).compile()
    assert program.memory_analysis().temp_size_in_bytes < ROWS * BEAMS * LENGTH * 4 * kv_heads * WIDTH / 2
