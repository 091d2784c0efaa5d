"""How well a model still predicts general text."""

import functools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tqdm import tqdm

from gems_jax.models import Decoder


def general_loss(model: Any, batches: Iterable[Mapping[str, Any]], *, progress: bool = False) -> dict[str, float]:
    """Mean loss a token over general text, with the added item tokens left out and with them.

    ``loss = -1/n sum log p(token | text so far)`` over all n target tokens of all batches. The loss over the
    base model's own vocabulary is comparable before and after items were added; the one over the full
    vocabulary also counts what the item tokens take.

    Args:
      model: a ``gems_jax.models.T5`` or ``Decoder``.
      batches: dictionaries of ``input_ids`` and ``attention_mask`` int ``[B, S]``, ``labels`` and ``label_mask``. For
        a T5 these are ``[B, S_target]``, as are ``decoder_input_ids``: span corruption. For a decoder they are
        ``[B, S]``, each label the token after its position; padding is on the right.
      progress: shows batches done, rate and time left.

    Returns:
      ``"loss"``, ``"perplexity"`` over the base vocabulary, ``"loss_full"``, ``"perplexity_full"`` over all
      tokens, and ``"tokens"``, the number of target tokens.

    Raises:
      ValueError: if there is no target token, a label is not in the base vocabulary, or a batch is not of the
        model's family.

    Example:
      >>> import jax, numpy as np
      >>> from gems_jax.models import T5, T5Config
      >>> config = T5Config(vocab_size=12, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_decoder_layers=1,
      ...                   num_heads=2)
      >>> ones = np.ones((2, 3), np.int32)
      >>> batch = {"input_ids": 5 * ones, "attention_mask": ones, "decoder_input_ids": 4 * ones,
      ...          "labels": 4 * ones, "label_mask": ones}
      >>> result = general_loss(T5.create(config, jax.random.key(0)), [batch])
      >>> result["tokens"], result["loss"] == result["loss_full"]
      (6.0, True)
    """
    graphdef, state = nnx.split(model)
    names = ["input_ids", "attention_mask", "labels", "label_mask"]
    names += [] if isinstance(model, Decoder) else ["decoder_input_ids"]
    base, full, tokens = 0.0, 0.0, 0.0
    for number, batch in enumerate(tqdm(batches, desc="general text", unit="batch", disable=not progress)):
        missing = [name for name in names if name not in batch]
        if missing:
            raise ValueError(
                f"general text, batch {number}: a {type(model).__name__} needs {missing[0]}; this batch has "
                f"{', '.join(batch)} and is of another family of models"
            )
        _check_labels(batch, model.config.vocab_size, number)
        arrays = {name: jnp.asarray(batch[name]) for name in names}
        sums = np.asarray(_loss_sums(graphdef, state, arrays), dtype=np.float64)
        base, full, tokens = base + float(sums[0]), full + float(sums[1]), tokens + float(sums[2])
    if not tokens:
        raise ValueError("no target token in any batch of general text: give more text or fewer tokens a batch")
    loss, loss_full = base / tokens, full / tokens
    return {
        "loss": loss,
        "perplexity": _perplexity(loss),
        "loss_full": loss_full,
        "perplexity_full": _perplexity(loss_full),
        "tokens": tokens,
    }


@functools.partial(jax.jit, static_argnames="graphdef")
def _loss_sums(graphdef: Any, state: Any, batch: dict[str, jax.Array]) -> jax.Array:
    """Sums over target tokens ``[3]``: loss over the base vocabulary, over the full one, number of tokens."""
    model = nnx.merge(graphdef, state)
    if isinstance(model, Decoder):
        hidden = model.hidden(batch["input_ids"])
    else:
        encoded = model.encode(batch["input_ids"], batch["attention_mask"])
        hidden = model.decode(batch["decoder_input_ids"], encoded, batch["attention_mask"])
    base = model.token_losses(hidden, batch["labels"], "base")
    full = model.token_losses(hidden, batch["labels"], "full") if model.config.num_added_tokens else base
    counted = batch["label_mask"].astype(bool)
    # where, not a product: what stands at a masked position may be anything, infinities included.
    return jnp.stack([jnp.where(counted, value, 0.0).sum() for value in (base, full, jnp.ones_like(base))])


def _check_labels(batch: Mapping[str, Any], vocab_size: int, number: int) -> None:
    labels = np.where(np.asarray(batch["label_mask"], bool), np.asarray(batch["labels"]), 0)
    if labels.size and (labels.min() < 0 or labels.max() >= vocab_size):
        raise ValueError(
            f"general text, batch {number}: labels reach from {labels.min()} to {labels.max()}, but the base "
            f"vocabulary has tokens 0 to {vocab_size - 1}; tokenise the text with the base model's tokenizer"
        )


def _perplexity(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf
