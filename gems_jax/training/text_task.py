"""General text as one more task: what its loss is, and its rows beside the other tasks'."""

import functools
import zlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from gems_jax.config.run import Config
from gems_jax.config.train import TrainConfig
from gems_jax.data.batching.layouts import LAYOUTS
from gems_jax.data.batching.pipeline import TaskBatchSource
from gems_jax.data.batching.with_text import TextBesideTasks
from gems_jax.data.text.general_text import read_lines, token_stream
from gems_jax.models.losses import chunked_token_divergences
from gems_jax.task_grads import token_mean
from gems_jax.training.losses import Batch
from gems_jax.training.trainable import join_model
from gems_jax.types import PyTree

TextLoss = Callable[[PyTree, PyTree, PyTree, Batch], jax.Array]


def text_loss(graphdef: Any, train: TrainConfig) -> TextLoss | None:
    """The loss of general text, the mean over its label tokens; ``None`` where it is no task.

    ``replay``: cross entropy over all tokens, items among them. ``distill``: ``KL(base || model)``, see
    `gems_jax.models.losses.token_divergences`. Both hold the logits of ``train.loss_chunk`` tokens at a time.

    Args:
      graphdef: of `gems_jax.training.trainable.split_model`.
      train: of the run.

    Returns:
      ``loss(params, frozen, base, batch) -> scalar``, ``base`` the parameters that tuning begins with (for ``distill``
      alone), before ``train.text_task_weight``.
    """
    if train.text_task == "none":
        return None
    chunk, distilled = train.loss_chunk, train.text_task == "distill"

    def loss_fn(params: PyTree, frozen: PyTree, base: PyTree, batch: Batch) -> jax.Array:
        model: Any = join_model(graphdef, params, frozen)
        hidden = model.batch_hidden(batch, batch.get("dropout_key"))
        if not distilled:
            return token_mean(model.token_losses(hidden, batch["labels"], "full", chunk), batch["label_mask"])
        teacher: Any = join_model(graphdef, base, frozen)
        known = jax.lax.stop_gradient(teacher.batch_hidden(batch))
        apart = chunked_token_divergences(
            hidden,
            lambda x: model.logit_parts(x, "full"),
            known,
            lambda x: teacher.logit_parts(x, "base")[0],
            chunk,
        )
        return token_mean(apart, batch["label_mask"])

    return loss_fn


class TextRows:
    """The rows of general text that a run trains on: the text that the null space is made from, never held-out text.

    Args:
      config: of the run.
      tokenizer: of the model.
      layout: of its batches.

    Attributes:
      tokens: int32 ``[N]``, the text.
      rows: in a batch, of all processes.
      example: the first batch.
    """

    def __init__(self, config: Config, tokenizer: Any, layout: Any):
        train, text = config.train, config.text
        self.tokens = token_stream(read_lines(text.train, "train", text.field), tokenizer)
        self.rows = train.text_task_rows // train.accumulate
        self._stream = LAYOUTS[layout].text_stream(self.tokens, tokenizer, self.rows, text.input_length, train.seed)
        self._digest = f"{zlib.crc32(self.tokens.tobytes())} {self.rows} {text.input_length} {train.seed}"
        self.example = self._stream(0)

    def beside(self, index: int, parts: int) -> Callable[[TaskBatchSource], TextBesideTasks]:
        """Puts the rows of part ``index`` of ``parts`` beside the tasks' batches."""
        return functools.partial(TextBesideTasks, stream=self._stream, digest=self._digest, index=index, parts=parts)

    def summary(self, train: TrainConfig) -> str:
        """A line on them, for a person who starts a run."""
        inputs, labels = (int(np.sum(self.example[name])) for name in ("attention_mask", "label_mask"))
        epochs = train.steps * train.accumulate * inputs / max(len(self.tokens), 1)
        return (
            f"text: {train.text_task} of {len(self.tokens):,} tokens, {train.text_task_rows} rows of "
            f"{inputs // self.rows:,} input and {labels // self.rows:,} label tokens a step, {epochs:.1f} epochs, "
            f"weight {train.text_task_weight:g}"
        )
