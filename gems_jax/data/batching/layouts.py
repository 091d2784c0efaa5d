"""How a row lies in a batch, by what a model says of itself: `gems_jax.models.family.LanguageModel.layout`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from gems_jax.data.text.next_token import next_token_batch, next_token_batches
from gems_jax.data.text.small_tokenizer import sentinel_ids
from gems_jax.data.text.span_corruption import heldout_batches, span_corruption_batch
from gems_jax.types import Batch

if TYPE_CHECKING:
    from gems_jax.models.family import Layout


class RowLayout(Protocol):
    """One way to lay rows out.

    Attributes:
      answer_follows: whether the answer is part of ``input_ids``, behind the prompt.
      padding_side: where an input is padded so that its answer can be generated.
    """

    answer_follows: bool
    padding_side: str

    def around(self, tokenizer: Any) -> tuple[list[int], list[int]]:
        """The tokens before and behind every prompt."""
        ...

    def columns(self, inputs: int, answer: int) -> dict[str, int]:
        """Columns of each array of a batch, for ``inputs`` columns of ``input_ids``, answers of ``answer`` tokens."""
        ...

    def join(
        self, prompts: np.ndarray, mask: np.ndarray, answers: np.ndarray, valid: np.ndarray, pad: int, start: int
    ) -> Batch:
        """The batch of prompts and answers, see `gems_jax.data.batching.batches.make_batch`.

        Args:
          prompts, mask: int32 ``[B, S]``, may be changed.
          answers: int32 ``[B, A]``.
          valid: bool ``[B, A]``, which of the answers' tokens are there.
          pad, start: token ids, of padding and of what a decoder begins with.
        """
        ...

    def text_batches(
        self, tokens: np.ndarray, tokenizer: Any, batch_size: int, input_length: int, max_batches: int | None
    ) -> Iterator[Batch]:
        """Chunks of general text once, spread over it, as models of this layout are pretrained on text.

        Args:
          tokens: int ``[N]``.
          tokenizer: of the model.
          batch_size, input_length, max_batches: see `gems_jax.data.text.next_token.next_token_batches`.
        """
        ...

    def text_stream(
        self, tokens: np.ndarray, tokenizer: Any, batch_size: int, input_length: int, seed: int
    ) -> Callable[[int], Batch]:
        """The same as an endless stream of full batches, by their numbers: epochs in other orders, to train on.

        Args:
          tokens, tokenizer, batch_size, input_length: see `text_batches`.
          seed: of the order.
        """
        ...


class _EncoderDecoder:
    """The prompt is encoded, the answer decoded: labels stand beside the decoder's inputs."""

    answer_follows = False
    padding_side = "right"

    def around(self, tokenizer: Any) -> tuple[list[int], list[int]]:
        return [], [tokenizer.eos_token_id]

    def columns(self, inputs: int, answer: int) -> dict[str, int]:
        names = ("decoder_input_ids", "labels", "label_mask")
        return {"input_ids": inputs, "attention_mask": inputs} | dict.fromkeys(names, answer)

    def join(
        self, prompts: np.ndarray, mask: np.ndarray, answers: np.ndarray, valid: np.ndarray, pad: int, start: int
    ) -> Batch:
        decoder_input_ids = np.empty_like(answers)
        decoder_input_ids[:, 0] = start
        decoder_input_ids[:, 1:] = np.where(valid[:, 1:], answers[:, :-1], pad)
        return {
            "input_ids": prompts,
            "attention_mask": mask,
            "decoder_input_ids": decoder_input_ids,
            "labels": answers,
            "label_mask": valid.astype(np.int32),
        }

    def text_batches(
        self, tokens: np.ndarray, tokenizer: Any, batch_size: int, input_length: int, max_batches: int | None
    ) -> Iterator[Batch]:
        sentinels = sentinel_ids(tokenizer)
        return heldout_batches(tokens, batch_size, input_length, sentinel_ids=sentinels, max_batches=max_batches)

    def text_stream(
        self, tokens: np.ndarray, tokenizer: Any, batch_size: int, input_length: int, seed: int
    ) -> Callable[[int], Batch]:
        options: dict[str, Any] = {"batch_size": batch_size, "input_length": input_length, "seed": seed}
        return functools.partial(span_corruption_batch, tokens, sentinel_ids=sentinel_ids(tokenizer), **options)


class _Decoder:
    """The answer follows the prompt: each label is the token after its position."""

    answer_follows = True
    padding_side = "left"

    def around(self, tokenizer: Any) -> tuple[list[int], list[int]]:
        return beginning_of(tokenizer), []

    def columns(self, inputs: int, answer: int) -> dict[str, int]:
        return dict.fromkeys(("input_ids", "attention_mask", "labels", "label_mask"), inputs)

    def join(
        self, prompts: np.ndarray, mask: np.ndarray, answers: np.ndarray, valid: np.ndarray, pad: int, start: int
    ) -> Batch:
        row, position = np.nonzero(valid)
        column = mask.sum(axis=1)[row] + position
        prompts[row, column] = answers[row, position]
        mask[row, column] = 1
        labels = np.full_like(prompts, pad)
        labels[:, :-1] = prompts[:, 1:]
        label_mask = np.zeros_like(prompts)
        label_mask[row, column - 1] = 1
        return {"input_ids": prompts, "attention_mask": mask, "labels": labels, "label_mask": label_mask}

    def text_batches(
        self, tokens: np.ndarray, tokenizer: Any, batch_size: int, input_length: int, max_batches: int | None
    ) -> Iterator[Batch]:
        return next_token_batches(tokens, batch_size, input_length, max_batches, _first_token(tokenizer))

    def text_stream(
        self, tokens: np.ndarray, tokenizer: Any, batch_size: int, input_length: int, seed: int
    ) -> Callable[[int], Batch]:
        options: dict[str, Any] = {"batch_size": batch_size, "input_length": input_length, "seed": seed}
        return functools.partial(next_token_batch, tokens, bos_token_id=_first_token(tokenizer), **options)


LAYOUTS: Mapping[Layout, RowLayout] = {"encoder_decoder": _EncoderDecoder(), "decoder": _Decoder()}


def _first_token(tokenizer: Any) -> int | None:
    """The token that begins every text, ``None`` where none does."""
    first = tokenizer("a")["input_ids"][0]
    return int(first) if first == tokenizer.bos_token_id else None


def beginning_of(tokenizer: Any) -> list[int]:
    """The tokens that a tokenizer puts before every text."""
    plain = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    whole = list(tokenizer("a")["input_ids"])
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return whole[:start]
    return []
