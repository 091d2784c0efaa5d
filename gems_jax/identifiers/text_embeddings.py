"""Embeddings of texts: the mean of a language model's own final states."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tqdm import tqdm

from gems_jax.data.batching.layouts import LAYOUTS
from gems_jax.data.text.plain_text import plain_reader

# Tokens of a text that are read, those around it included, and texts whose tokens are found at once.
MOST_TOKENS = 128
_TEXTS = 65_536
# Tokens of a batch.
_BATCH_TOKENS = 8192


def text_embeddings(model: Any, tokenizer: Any, texts: Sequence[str], progress: bool = False) -> np.ndarray:
    """The mean over a text's tokens of the model's final states, float32.

    ``x = 1/n sum_t h_t``, with ``h`` behind the last norm; of an encoder-decoder the encoder's. The tokens are those of
    the text and what stands around a prompt of the model's layout.

    Args:
      model: a `gems_jax.models.family.LanguageModel`.
      tokenizer: of the model, a Hugging Face tokenizer.
      texts: N texts; longer ones are cut to `MOST_TOKENS` tokens.
      progress: shows texts done, rate and time left.

    Returns:
      float32 ``[N, d_model]``; zeros for a text without tokens.

    Example:
      >>> from gems_jax.data.text.small_tokenizer import train_tokenizer
      >>> from gems_jax.models import T5, T5Config
      >>> tokenizer = train_tokenizer(["red lamps and red chairs"] * 3, vocab_size=400)
      >>> config = T5Config(vocab_size=len(tokenizer), d_model=8, d_kv=4, d_ff=8, num_layers=1, num_decoder_layers=1,
      ...                   num_heads=2)
      >>> rows = text_embeddings(T5.create(config, jax.random.key(0)), tokenizer, ["red lamps", "red chairs"])
      >>> rows.shape, bool((rows[0] == rows[1]).all())
      ((2, 8), False)
    """
    first, last = LAYOUTS[model.layout].around(tokenizer)
    room = MOST_TOKENS - len(first) - len(last)
    read = plain_reader(tokenizer)
    graphdef, state = nnx.split(model)

    @jax.jit
    def means(state: Any, ids: jax.Array, mask: jax.Array) -> jax.Array:
        reader: Any = nnx.merge(graphdef, state)
        hidden = jnp.where(mask[..., None] > 0, reader.text_hidden(ids, mask).astype(jnp.float32), 0)
        return hidden.sum(1) / jnp.maximum(mask.sum(1), 1)[:, None]

    embeddings = np.zeros((len(texts), model.config.d_model), np.float32)
    with tqdm(total=len(texts), desc="reading items", unit="item", mininterval=1.0, disable=not progress) as bar:
        for start in range(0, len(texts), _TEXTS):
            tokens = [[*first, *ids[:room], *last] for ids in read(texts[start : start + _TEXTS])]
            lengths = np.array([len(ids) for ids in tokens])
            order = np.argsort(lengths, kind="stable")
            while len(order):
                # A power of two of rows and columns: few programs. Rows of one length class share it.
                width = max(8, 1 << (int(lengths[order[0]]) - 1).bit_length())
                count = min(_BATCH_TOKENS // width, 1 << (len(order) - 1).bit_length())
                rows = order[:count][lengths[order[:count]] <= width]
                order = order[len(rows) :]
                ids = np.zeros((count, width), np.int32)
                mask = np.zeros((count, width), np.int32)
                for row, number in enumerate(rows.tolist()):
                    ids[row, : lengths[number]], mask[row, : lengths[number]] = tokens[number], 1
                embeddings[start + rows] = np.asarray(means(state, ids, mask))[: len(rows)]
                bar.update(len(rows))
    return embeddings
