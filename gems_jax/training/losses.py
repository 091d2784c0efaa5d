"""The loss of a task's batch."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from gems_jax.models.family import LanguageModel
from gems_jax.task_grads import token_mean
from gems_jax.training.trainable import join_model
from gems_jax.types import PyTree

Batch = Mapping[str, jax.Array]


def answer_hidden(
    model: LanguageModel, batch: Batch, dropout_key: jax.Array | None = None, answer_length: int | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Final states where labels are, the labels and their mask.

    Args:
      model: any.
      batch: of `gems_jax.data.batching.batches.make_batch`.
      dropout_key: where the model has dropout.
      answer_length: most label tokens a row has; where labels have more positions, the others are left out of
        the output layer.

    Returns:
      ``[B, A, d_model]``, int ``[B, A]``, ``[B, A]``.
    """
    labels, mask = batch["labels"], batch["label_mask"]
    hidden = model.batch_hidden(batch, dropout_key)
    if answer_length is not None and answer_length < labels.shape[1]:
        # Equal values keep their order, so these are the answer's positions, first to last.
        mask, positions = jax.lax.top_k(mask, answer_length)
        hidden = jnp.take_along_axis(hidden, positions[..., None], axis=1)
        labels = jnp.take_along_axis(labels, positions, axis=1)
    return hidden, labels, mask


def task_loss(
    graphdef: Any, vocabulary: str, answer_length: int | None = None, chunk_size: int | None = None
) -> Callable[[PyTree, PyTree, Batch], jax.Array]:
    """Loss of one task: the mean over its label tokens (those of the item, and the end token).

    Args:
      graphdef: of `gems_jax.training.trainable.split_model`.
      vocabulary: what the softmax is over: ``"items"``: the end token and the added ones; ``"full"``: all tokens.
      answer_length: see `answer_hidden`.
      chunk_size: tokens whose logits are held at once, see `gems_jax.models.chunked_token_losses`.

    Returns:
      ``loss(params, frozen, batch) -> scalar``.
    """

    def loss_fn(params: PyTree, frozen: PyTree, batch: Batch) -> jax.Array:
        model: Any = join_model(graphdef, params, frozen)
        hidden, labels, mask = answer_hidden(model, batch, batch.get("dropout_key"), answer_length)
        if vocabulary == "items":
            # Column 0 is the end token, the added tokens follow in order.
            labels = jnp.where(labels < model.config.vocab_size, 0, labels - model.config.vocab_size + 1)
        return token_mean(model.token_losses(hidden, labels, vocabulary, chunk_size), mask)

    return loss_fn
