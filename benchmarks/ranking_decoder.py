"""A decoder's search over a million items after a long prompt, beside the pass over the prompt alone."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx
from ranking_turns import ratio, spread, turns

import gems_jax as gj
from gems_jax.ranking.beam_search import beam_search
from gems_jax.ranking.trie import catalogue_of

ITEMS, LEVELS, CODES, BEAMS, LENGTH, RESULTS = 1_000_000, 3, 256, 256, 1000, 20
SHAPE = {"vocab_size": 32_000, "d_model": 768, "d_ff": 2048, "num_layers": 12, "num_heads": 12, "num_kv_heads": 4}


def decoder_search(rounds: int) -> dict[str, Any]:
    """Seconds of a search and of its prompt's pass, and the bytes that its program needs beside its inputs."""
    config = gj.models.DecoderConfig(
        **SHAPE, head_dim=64, model_type="qwen3", eos_token_id=1, num_added_tokens=LEVELS * CODES
    )
    model = gj.models.unstacked(gj.models.Decoder.create(config, jax.random.key(0)))
    packed = np.random.default_rng(0).permutation(CODES**LEVELS)[:ITEMS]
    levels = np.stack([packed // CODES**2, packed // CODES % CODES, packed % CODES], axis=1)
    items = gj.ItemIndex((levels + SHAPE["vocab_size"] + CODES * np.arange(LEVELS)).astype(np.int32))
    trie = catalogue_of(items).trie
    tokens = np.random.default_rng(1).integers(2, SHAPE["vocab_size"], (1, LENGTH)).astype(np.int32)
    inputs = {"input_ids": tokens, "attention_mask": np.ones_like(tokens)}
    options = {"k": RESULTS, "beams": BEAMS, "vocabulary": "full"}
    graph, state = nnx.split(model)

    @jax.jit
    def prompt(state: Any, inputs: dict[str, jax.Array]) -> jax.Array:
        return nnx.merge(graph, state).start_beams(inputs)[0]

    def waited(run: Callable[[], Any]) -> Callable[[], Any]:
        return lambda: jax.block_until_ready(run())

    runs = {
        "search": waited(lambda: beam_search(model, inputs, trie, **options)),
        "prompt": waited(lambda: prompt(state, inputs)),
    }
    found = np.asarray(runs["search"]()[0])
    if (found < 0).any() or len(set(found[0].tolist())) < RESULTS:
        raise SystemExit("fewer items than asked for")
    seconds = turns(runs, rounds)
    program = beam_search.lower(model, inputs, trie, **options).compile()
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state)),
        "items": ITEMS,
        "length": LENGTH,
        "beams": BEAMS,
        "seconds": spread(seconds["search"]),
        "prompt_seconds": spread(seconds["prompt"]),
        "times_prompt": ratio(seconds["search"], seconds["prompt"]),
        "temporary_bytes": program.memory_analysis().temp_size_in_bytes,
    }
