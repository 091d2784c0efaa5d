"""General text as a model goes on with it, before and after tuning, word for word."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from gems_jax.data.batching.layouts import LAYOUTS
from gems_jax.models.generate import greedy
from gems_jax.types import TextBatch


def continuations(
    base: Any, tuned: Any, tokenizer: Any, batch: TextBatch, *, rows: int = 8, new_tokens: int = 24
) -> dict[str, Any]:
    """Lets both models go on with general text, taking the likeliest of all tokens each time, items among them.

    Where the answer follows the prompt, a model goes on from the first half of each input; where it is decoded, the
    model fills the spans that its input leaves out.

    Args:
      base: the model before tuning, without items.
      tuned: after tuning.
      tokenizer: of the tuned model.
      batch: general text in the models' layout, ``input_ids`` and ``attention_mask`` int ``[B, S]``.
      rows: inputs that are continued, the first of the batch.
      new_tokens: most tokens of a continuation.

    Returns:
      ``"agreement"``: share of the base model's new tokens that the tuned one puts at the same place; ``"unchanged"``:
      share of inputs with the same continuation; ``"item_tokens"``: share of the tuned model's new tokens that are
      items' tokens; ``"texts"``: for each input ``"prompt"``, ``"base"`` and ``"tuned"``. JSON values only.

    Raises:
      ValueError: ``rows`` or ``new_tokens`` is below 1.

    Example:
      >>> import jax
      >>> from gems_jax.models.decoder.model import Decoder, DecoderConfig
      >>> class Words:
      ...     def decode(self, ids, skip_special_tokens):
      ...         return " ".join(str(int(one)) for one in ids)
      >>> config = DecoderConfig(vocab_size=20, d_model=8, d_ff=16, num_layers=1, num_heads=2, num_kv_heads=1,
      ...                        head_dim=4)
      >>> model, ids = Decoder.create(config, jax.random.key(0)), np.arange(4, 12)[None]
      >>> found = continuations(model, model, Words(), {"input_ids": ids, "attention_mask": np.ones_like(ids)})
      >>> found["agreement"], found["unchanged"], found["item_tokens"], found["texts"][0]["prompt"]
      (1.0, 1.0, 0.0, '4 5 6 7')
    """
    if rows < 1:
        raise ValueError(f"rows must be at least 1, got {rows}")
    prompts, mask = (np.asarray(batch[name])[:rows] for name in ("input_ids", "attention_mask"))
    if LAYOUTS[base.layout].answer_follows:
        half = max(1, prompts.shape[1] // 2)
        prompts, mask = prompts[:, :half], mask[:, :half]
    inputs = {"input_ids": jnp.asarray(prompts), "attention_mask": jnp.asarray(mask)}
    before, after = (np.asarray(greedy(model, inputs, new_tokens)) for model in (base, tuned))
    written = _written(base, before)
    same = before == after
    return {
        "agreement": float(same[written].mean()),
        "unchanged": float(same.all(axis=1).mean()),
        "item_tokens": float((after >= base.config.vocab_size)[_written(tuned, after)].mean()),
        "texts": [
            {
                "prompt": tokenizer.decode(row[seen > 0], skip_special_tokens=True),
                "base": tokenizer.decode(first[wrote], skip_special_tokens=True),
                "tuned": tokenizer.decode(second, skip_special_tokens=True),
            }
            for row, seen, first, wrote, second in zip(prompts, mask, before, written, after, strict=True)
        ],
    }


def _written(model: Any, ids: np.ndarray) -> np.ndarray:
    """Which of the new tokens ``[B, N]`` a model has written: behind the one that ends a text there is padding.

    A first token is always written, also where it is what padding is.
    """
    padding = ids == model.config.pad_token_id
    trailing = np.flip(np.logical_and.accumulate(np.flip(padding, 1), axis=1), 1)
    trailing[:, 0] = False
    return ~trailing
