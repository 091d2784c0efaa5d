"""The model that `ranking.py` times, here and in transformers, and the constrained search of transformers."""

import argparse
import dataclasses
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers
from ranking_device import peer_device

import gems_jax as gj
from gems_jax.models.registry import FAMILIES


def models(args: argparse.Namespace, added: int) -> tuple[Any, gj.models.T5]:
    """A T5 of transformers with random weights, on the CPU, and ours with the same, ``added`` tokens as items."""
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=args.vocab_size + added,
        d_model=args.width,
        d_kv=args.width // args.heads,
        d_ff=args.hidden,
        num_layers=args.layers,
        num_heads=args.heads,
        feed_forward_proj="relu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
        dropout_rate=0.0,
    )
    other = transformers.T5ForConditionalGeneration(config).eval()
    # Built without a checkpoint, it shares head and embedding whatever its config says.
    other.lm_head.weight = torch.nn.Parameter(3 * torch.randn(args.vocab_size + added, args.width) / args.width**0.5)
    family = FAMILIES["t5"]
    ours_config = family.read_config(json.loads(config.to_json_string()), "the benchmark's model")
    ours_config = dataclasses.replace(ours_config, tie_word_embeddings=False)
    tensors = {name: tensor.detach().numpy() for name, tensor in other.state_dict().items()}
    params = {}
    for leaf, weight in family.weights(ours_config).items():
        parts = [tensors[name].T if weight.transposed else tensors[name] for name in weight.names()]
        params[leaf] = parts[0] if weight.layers is None else np.stack(parts)
    for table, items in (("token_embedding", "item_embedding"), ("lm_head", "item_head")):
        whole = params[f"{table}/embedding"]
        params[f"{table}/embedding"], params[f"{items}/embedding"] = np.split(whole, [args.vocab_size])
    ours_config = dataclasses.replace(ours_config, vocab_size=args.vocab_size, num_added_tokens=added)
    return other, gj.models.T5.from_params(ours_config, params)


def draw_inputs(args: argparse.Namespace, rows: int) -> dict[str, np.ndarray]:
    """Inputs of random tokens, none of them padding."""
    ids = np.random.default_rng(1).integers(2, args.vocab_size, (rows, args.length), dtype=np.int32)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def peer(
    other: Any, inputs: dict[str, np.ndarray], items: gj.ItemIndex, candidates: np.ndarray, beams: int
) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
    """``generate`` with a trie of each row's candidates in dictionaries, which are made beforehand and not timed.

    Model and inputs go to the device beforehand, too; what is found comes back within the time.

    Returns:
      A function of nothing that gives item numbers and scores.
    """
    follow: list[dict[tuple[int, ...], set[int]]] = []
    names: list[dict[tuple[int, ...], int]] = []
    for row in candidates.tolist():
        names.append({tuple(items.token_ids[item].tolist()): item for item in row})
        follow.append({})
        for tokens in names[-1]:
            for length, token in enumerate((*tokens, 1)):
                follow[-1].setdefault(tokens[:length], set()).add(token)
    allowed = [{prefix: sorted(tokens) for prefix, tokens in of.items()} for of in follow]
    device = peer_device()
    other = other.to(device)
    ids = torch.tensor(inputs["input_ids"]).long().to(device)
    length = items.token_ids.shape[1]

    def run() -> tuple[np.ndarray, np.ndarray]:
        with torch.inference_mode():
            generated = other.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                num_beams=beams,
                num_return_sequences=beams,
                max_new_tokens=length + 1,
                do_sample=False,
                prefix_allowed_tokens_fn=lambda row, prefix: allowed[row].get(tuple(prefix[1:].tolist()), [1]),
                output_scores=True,
                return_dict_in_generate=True,
            )
        sequences = generated.sequences[:, 1 : length + 1].reshape(len(ids), beams, length).tolist()
        numbers = [[names[row][tuple(tokens)] for tokens in of] for row, of in enumerate(sequences)]
        scores = generated.sequences_scores.reshape(len(ids), beams).cpu().numpy()
        if device == "cuda":
            torch.cuda.synchronize()
        return np.array(numbers), scores

    return run
