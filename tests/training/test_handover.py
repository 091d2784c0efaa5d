"""An exported folder, decoded by transformers on torch as its README.md says, gives the run's items and scores.

Of the paths out of this package this is the one that people take: four searches of each kind are compiled for it.
"""

import json

import jax
import numpy as np
import pytest
import torch
from kinds_of_tokenizers import tokenizer_of
from shop import IDENTIFIERS
from tiny import documented_program

from gems_jax.config.base_model import ModelConfig
from gems_jax.config.items import ItemsConfig
from gems_jax.config.run import Config
from gems_jax.config.train import TrainConfig
from gems_jax.data.dataset.tables import Dataset, Item, Row, Table
from gems_jax.models import from_config, load, save
from gems_jax.ranking.rank_items import rank_items
from gems_jax.serving.prompts import padded
from gems_jax.training.export import export
from gems_jax.training.stages import assemble

SIZES = {
    "t5": {"d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2},
    "qwen3": {
        "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 4,
        "num_key_value_heads": 1, "bos_token_id": None, "eos_token_id": 4, "pad_token_id": 0,
    },
}  # fmt: skip
# Options of a base model that would change every score, and a second token that ends its texts.
GENERATION = {"repetition_penalty": 1.5, "temperature": 0.3, "do_sample": True, "num_beams": 3, "length_penalty": 2.0}


def dataset():
    items = [Item(f"B{number}", f"green thing {number}") for number in range(len(IDENTIFIERS))]
    tables = {
        ("train", "src"): Table.from_rows("src", [Row("ann", [0, 1], 2, "green tea"), Row("bob", [], 1, "kettle")]),
        ("train", "rec"): Table.from_rows("rec", [Row("ann", [5, 3, 3], 2)]),
    }
    return Dataset("shop", items, tables)


def different(model):
    """The model with other weights, far enough apart that no two scores are alike."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: leaf + 0.4 * rng.normal(size=leaf.shape).astype(leaf.dtype), model)


def exported(kind, identifiers, vocabulary, root):
    """A model that ranks, its items, prompts as tokens and texts, and the folder that it was exported to."""
    tokenizer = tokenizer_of("own" if kind == "t5" else "bytes")
    values = {"model_type": kind, "vocab_size": len(tokenizer), **SIZES[kind]}
    generation = GENERATION | {"eos_token_id": [SIZES[kind].get("eos_token_id", 1), 3]}
    files = {"generation_config.json": json.dumps(generation)}
    save(from_config(values, jax.random.key(0)), tokenizer, root / "base", files=files)
    names = None
    if identifiers == "several tokens":
        names = str(root / "names.json")
        (root / "names.json").write_text(json.dumps({f"B{number}": name for number, name in enumerate(IDENTIFIERS)}))
    config = Config(
        model=ModelConfig(path=str(root / "base")),
        items=ItemsConfig(identifiers=names, max_length=64, added_loss=None),
        train=TrainConfig(loss_vocabulary=vocabulary),
    )
    assets = assemble(config, dataset(), load(root / "base"))
    model = different(assets.model)
    export(config, assets, model, root / "out")
    return config, assets, model, root / "out"


@pytest.mark.parametrize(
    ("kind", "identifiers", "vocabulary"),
    [
        ("t5", "tokens", "full"),
        ("t5", "several tokens", "items"),
        ("qwen3", "tokens", "items"),
        ("qwen3", "several tokens", "full"),
    ],
)
def test_generate_of_transformers_gives_the_runs_items_and_scores(kind, identifiers, vocabulary, tmp_path):
    config, assets, model, folder = exported(kind, identifiers, vocabulary, tmp_path)
    asked = documented_program(folder)
    theirs, tokenizer, prompts, items = asked["ask"](folder)
    trie = dict(np.load(folder / "trie.npz"))
    before = theirs.generation_config.to_dict()
    for (_, task), table in dataset().tables.items():
        encoded = assets.encode(config, table)
        for row in range(len(table)):
            history = [f"B{item}" for item in table.history_of(row)]
            text = asked["prompt"](prompts, items, task, history, table.queries[row])
            prompt = padded([encoded.tokens_of(row)], 1, 64, 0)
            # A narrow search loses items on the way; the wide one has more beams than there are items.
            for k, beams in ((3, 3), (12, 14)):
                numbers, scores = rank_items(model, prompt, assets.items, k=k, beams=beams, vocabulary=vocabulary)
                found = asked["generate"](theirs, tokenizer, prompts, trie, text, k, beams)
                kept = np.asarray(numbers[0]) >= 0
                assert [number for _, number in found] == np.asarray(numbers[0])[kept].tolist()
                np.testing.assert_allclose([score for score, _ in found], scores[0][kept], atol=2e-5)
            assert len(found) == len(IDENTIFIERS)
    assert theirs.generation_config.to_dict() == before
    assert before["repetition_penalty"] == 1.5
    # What one draws along the trie by hand is always an item.
    end, prompted = prompts["end_token_id"], tokenizer(text, return_tensors="pt")["input_ids"]
    begin = 1 if kind == "t5" else prompted.shape[1]
    allowed = asked["allowed_tokens"](trie, begin, end)
    drawn = theirs.generate(
        prompted,
        prefix_allowed_tokens_fn=allowed,
        num_return_sequences=40,
        num_beams=1,
        eos_token_id=end,
        temperature=3.0,
        repetition_penalty=1.0,
    )[:, begin:].tolist()
    answers = {tuple(tokens[: tokens.index(end)]) for tokens in drawn}
    assert answers <= {tuple(item["token_ids"]) for item in items}
    assert len(answers) > 3
    assert allowed(0, torch.tensor([0] * begin + [7, 7])) == [end]
