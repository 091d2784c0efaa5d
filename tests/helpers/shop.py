"""A made-up shop of a dozen things, and models with random weights that rank them, for tests of answers."""

from typing import Any

import jax
import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from gems_jax.data.dataset.tables import Dataset, Item, Row, Table
from gems_jax.items.tokens import add_identifier_tokens
from gems_jax.models import T5, Decoder, DecoderConfig, T5Config
from gems_jax.serving.engine import Engine

WORDS = ["<pad>", "</s>", "<unk>", "history", "red", "shoe", "find"]
TEMPLATES = {"rec": "history {history}", "src": "find {query} history {history}"}
# Of one, two and three tokens; some begin others.
IDENTIFIERS = [
    ("<a0>", "<b0>", "<c0>"), ("<a0>", "<b0>"), ("<a0>", "<b1>", "<c0>"), ("<a1>",), ("<a1>", "<b0>", "<c1>"),
    ("<a1>", "<b0>", "<c0>"), ("<a2>", "<b2>", "<c2>"), ("<a2>", "<b2>"), ("<a2>", "<b1>"), ("<a0>", "<b1>", "<c1>"),
    ("<a1>", "<b2>", "<c2>"), ("<a2>", "<b0>", "<c0>"),
]  # fmt: skip


def dataset() -> Dataset:
    items = [Item(f"B{number}", f"thing {number}") for number in range(len(IDENTIFIERS))]
    rows = {
        ("train", "rec"): [Row("ann", [4], 1), Row("bob", [0], 2)],
        ("train", "src"): [Row("ann", [4], 1, query="red")],
        ("test", "rec"): [Row("ann", [4, 1, 4], 6), Row("bob", [0, 2], 3)],
        ("test", "src"): [Row("ann", [4, 1], 4, query="shoe")],
    }
    return Dataset("shop", items, {key: Table.from_rows(key[1], table) for key, table in rows.items()})


def tokenizer() -> Any:
    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", add_bos_token=False
    )


def t5(added: int) -> T5:
    sizes = {"vocab_size": len(WORDS), "num_added_tokens": added, "d_model": 8, "d_kv": 4, "d_ff": 8}
    return T5.create(T5Config(**sizes, num_layers=1, num_decoder_layers=1, num_heads=2), jax.random.key(0))


def decoder(added: int) -> Decoder:
    sizes = {"vocab_size": len(WORDS), "num_added_tokens": added, "d_model": 8, "head_dim": 4, "d_ff": 8}
    config = DecoderConfig(**sizes, num_layers=1, num_heads=2, num_kv_heads=1, eos_token_id=1, initializer_range=0.5)
    return Decoder.create(config, jax.random.key(0))


class Shop:
    """A model, what it ranks, and an engine over both.

    Args:
      make: `t5` or `decoder`.
      options: of the engine, see `again`.
    """

    def __init__(self, make: Any = t5, **options: Any):
        self.tokenizer = tokenizer()
        self.items = add_identifier_tokens(self.tokenizer, IDENTIFIERS)
        self.model = make(len(self.tokenizer) - len(WORDS))
        self.engine = self.again(**options)

    def again(self, beams: int = 4, batch_size: int = 3, base: Any = None) -> Engine:
        """Another engine over the same model."""
        options: dict[str, Any] = {"beams": beams, "batch_size": batch_size, "base": base}
        return Engine(self.model, self.tokenizer, dataset(), self.items, TEMPLATES, 20, **options)

    def prompt(self, words: list[int], history: list[int], end: bool) -> np.ndarray:
        """A prompt by hand: words, and the tokens of items."""
        rows = [self.items.token_ids[item] for item in history]
        return np.array([*words, *(token for row in rows for token in row[row >= 0]), *([1] if end else [])])
