"""A small T5's sizes, tokenizer and rows."""

from typing import Any

import jax
import numpy as np
import transformers
from tokenizers import Tokenizer, models

from gems_jax.models import T5, token_losses
from gems_jax.task_grads import token_mean

V = 60
SIZES: dict[str, Any] = {
    "vocab_size": V,
    "d_model": 16,
    "d_kv": 4,
    "d_ff": 24,
    "num_layers": 2,
    "num_decoder_layers": 1,
    "num_heads": 4,
}


def tokenizer_of(size: int) -> Any:
    words = {f"w{number}": number for number in range(size)}
    backend = Tokenizer(models.WordLevel(words, unk_token="w2"))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="w0", eos_token="w1", unk_token="w2"
    )


def batch_of(rows: int = 5, length: int = 17, targets: int = 6) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    mask = np.arange(length) < rng.integers(3, length + 1, rows)[:, None]
    mask[1] = mask[1, ::-1]
    target_mask = np.arange(targets) < rng.integers(1, targets + 1, rows)[:, None]
    labels = rng.integers(1, V, (rows, targets))
    return {
        "input_ids": rng.integers(2, V, (rows, length)),
        "attention_mask": mask.astype(np.int64),
        "decoder_input_ids": np.pad(labels, ((0, 0), (1, 0)))[:, :-1],
        "decoder_attention_mask": target_mask.astype(np.int64),
        "labels": labels,
    }


def inputs_of(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: value for name, value in batch.items() if name != "labels"}


def mean_loss(model: T5, batch: Any, **options: Any) -> jax.Array:
    logits = model(**inputs_of(batch), **options)
    return token_mean(token_losses(logits, batch["labels"]), batch["decoder_attention_mask"])


def tokens_of(vocabulary: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"input_ids": rng.integers(2, vocabulary, (3, 7)), "decoder_input_ids": rng.integers(2, vocabulary, (3, 4))}
