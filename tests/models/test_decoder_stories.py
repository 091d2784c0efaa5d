"""A pretrained model in the llama2.c format, through our decoder, tells its documented story."""

import re

import numpy as np
import pytest
from shared import SHARED, needs_shared

from gems_jax.models.decoder.model import Decoder, DecoderConfig
from gems_jax.models.generate import greedy

_FOLDER = SHARED / "data" / "stories260K"
_BEGIN = 1
# As many as `run` writes by itself.
_STEPS = 256


def _read_model(path):
    """A llama2.c file: seven sizes, then float32 weights, kernels ``[out, in]``."""
    content = path.read_bytes()
    d, d_ff, layers, heads, kv_heads, vocab, _ = sizes = np.frombuffer(content, "<i4", 7).tolist()
    flat = np.frombuffer(content, "<f4", offset=28)
    head_dim, place = d // heads, 0

    def take(*shape):
        nonlocal place
        place += int(np.prod(shape))
        return flat[place - int(np.prod(shape)) : place].reshape(shape)

    def halves(kernel):
        """Dimensions 2i and 2i + 1, which llama2.c rotates against each other, moved to i and i + head_dim / 2."""
        pairs = kernel.reshape(layers, -1, head_dim // 2, 2, d)
        return pairs.swapaxes(2, 3).reshape(kernel.shape)

    table, attention_norm = take(vocab, d), take(layers, d)
    q, k = halves(take(layers, d, d)), halves(take(layers, kv_heads * head_dim, d))
    v, o, mlp_norm = take(layers, kv_heads * head_dim, d), take(layers, d, d), take(layers, d)
    gate, down, up = take(layers, d_ff, d), take(layers, d, d_ff), take(layers, d_ff, d)
    kernels = {"attention/q": q, "attention/k": k, "attention/v": v, "attention/o": o}
    kernels |= {"mlp/gate": gate, "mlp/up": up, "mlp/down": down}
    params = {f"block/{name}/kernel": kernel.swapaxes(1, 2) for name, kernel in kernels.items()}
    params |= {
        "token_embedding/embedding": table,
        "block/attention_norm/scale": attention_norm,
        "block/mlp_norm/scale": mlp_norm,
        "final_norm/scale": take(d),
    }
    config = DecoderConfig(
        vocab_size=vocab,
        d_model=d,
        d_ff=d_ff,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        norm_epsilon=1e-5,
        tie_word_embeddings=True,
        eos_token_id=_BEGIN,  # a new story begins where one ends
        max_positions=sizes[-1],
    )
    return Decoder.from_params(config, params)


def _read_tokens(path):
    """Length of the longest, then of each token a score, its length and its bytes."""
    content, place, tokens = path.read_bytes(), 4, []
    while place < len(content):
        length = int(np.frombuffer(content, "<i4", 1, place + 4)[0])
        tokens.append(content[place + 8 : place + 8 + length])
        place += 8 + length
    return tokens


def _text(ids, tokens):
    pieces = [tokens[i] for i in ids]
    pieces = [re.sub(rb"^<0x(..)>$", lambda found: bytes([int(found[1], 16)]), piece) for piece in pieces]
    return b"".join(pieces).decode().removeprefix(" ")


@needs_shared
@pytest.mark.parametrize("padding", [0, 3])
def test_a_pretrained_model_tells_its_documented_story(padding):
    document = (_FOLDER / "stories260K.md").read_text()
    documented = re.search(r"-t 0.0\n(.*?)\n```", document, re.DOTALL)[1]
    model, tokens = _read_model(_FOLDER / "stories260K.bin"), _read_tokens(_FOLDER / "tok512.bin")
    inputs = {
        "input_ids": np.array([[0] * padding + [_BEGIN]]),
        "attention_mask": np.array([[0] * padding + [1]]),
    }
    ids = np.asarray(greedy(model, inputs, _STEPS))[0].tolist()
    ids = ids[: ids.index(_BEGIN)] if _BEGIN in ids else ids
    assert _text(ids, tokens) == documented
