"""Facts by templates: whether a tuned model still ends sentences as its base does where that was sure of it."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gems_jax.data.batching.layouts import LAYOUTS
from gems_jax.data.text.small_tokenizer import sentinel_ids
from gems_jax.evaluation.fact_prompts import FactPrompt, fact_prompts
from gems_jax.evaluation.fact_summary import LEAST, by_kind, fact_numbers
from gems_jax.types import Batch

# Rows of which the logits are held at once, and lost answers that are kept as text.
_ROWS, _SHOWN = 32, 20


class KnownFacts(NamedTuple):
    """The answers that a base model is sure of.

    Attributes:
      prompts: all that were asked.
      batches: the same as tokens.
      known: bool ``[N]``, whether the base gives its likeliest next token a probability of at least a half.
      answers: int ``[N]``, that token.
    """

    prompts: Sequence[FactPrompt]
    batches: Sequence[tuple[Batch, np.ndarray]]
    known: np.ndarray
    answers: np.ndarray


def known_facts(
    base: Any, tokenizer: Any, prompts: Sequence[FactPrompt] | None = None, *, least: float = 0.5
) -> KnownFacts:
    """Asks the base model for the next token of each prompt.

    Args:
      base: the model before tuning; of one with items, the tokens before them.
      tokenizer: of the model.
      prompts: what is asked; ``None``: `gems_jax.evaluation.fact_prompts.fact_prompts`.
      least: probability from which an answer is one that it is sure of.

    Returns:
      `KnownFacts`. Where the answer follows the prompt it is the prompt's next token; where it is decoded, the first
      token of the span that a sentinel behind the prompt stands for.
    """
    prompts = fact_prompts() if prompts is None else prompts
    batches = _batches(base, tokenizer, [prompt.text for prompt in prompts])
    answers, sizes = _answers(base, batches, len(prompts), "base")
    return KnownFacts(prompts, batches, sizes >= np.log(least), answers)


def kept_facts(
    facts: KnownFacts, tuned: Any, tokenizer: Any, *, samples: int = 1000
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Asks the tuned model the same: an answer is kept if the same token is the likeliest of all, items among them.

    Args:
      facts: of its base.
      tuned: after tuning.
      tokenizer: of the tuned model, for the answers that are lost.
      samples: bootstrap resamples of the interval.

    Returns:
      The numbers of `gems_jax.evaluation.fact_summary.fact_numbers`, and beside them ``"kinds"``, counts by kind of
      prompt, and ``"lost"``, the first lost answers: ``"prompt"``, ``"base"``, ``"tuned"``. A model whose base is sure
      of fewer than 20 is not asked, and nothing is said to be kept or lost. JSON values only.
    """
    kinds = [prompt.kind for prompt in facts.prompts]
    if facts.known.sum() < LEAST:
        return fact_numbers(facts.known, None), {"kinds": by_kind(kinds, facts.known, None), "lost": []}
    answers, _ = _answers(tuned, facts.batches, len(facts.prompts), "full")
    kept = answers == facts.answers
    lost = [
        {
            "prompt": facts.prompts[place].text,
            "base": tokenizer.decode([int(facts.answers[place])]).strip(),
            "tuned": tokenizer.decode([int(answers[place])]).strip(),
        }
        for place in np.flatnonzero(facts.known & ~kept)[:_SHOWN]
    ]
    numbers = fact_numbers(facts.known, kept, samples)
    return numbers, {"kinds": by_kind(kinds, facts.known, kept), "lost": lost}


def _batches(model: Any, tokenizer: Any, texts: Sequence[str]) -> list[tuple[Batch, np.ndarray]]:
    """Batches of one shape, and of each row the position whose state tells the answer."""
    layout, config = LAYOUTS[model.layout], model.config
    before, behind = layout.around(tokenizer)
    # Text that leaves a span out says so by a sentinel; the decoder begins with it.
    gap = [] if layout.answer_follows else sentinel_ids(tokenizer)[:1]
    rows = [[*before, *tokenizer(text, add_special_tokens=False)["input_ids"], *gap, *behind] for text in texts]
    width = -(-(max(map(len, rows)) + 1) // 8) * 8
    pad, start = config.pad_token_id, getattr(config, "decoder_start_token_id", config.pad_token_id)
    batches = []
    for first in range(0, len(rows), _ROWS):
        part = rows[first : first + _ROWS]
        part = part + rows[:1] * (_ROWS - len(part))  # of one shape; what these answer is dropped
        mask = (np.arange(width) < np.array([len(row) for row in part])[:, None]).astype(np.int32)
        ids = np.full((_ROWS, width), pad, np.int32)
        ids[mask > 0] = np.concatenate(part)
        # The answer is not known: padding stands for it.
        answer = np.tile(np.array([*gap, pad], np.int32), (_ROWS, 1))
        batch = layout.join(ids, mask, answer, np.ones(answer.shape, bool), pad, start)
        batches.append((batch, batch["label_mask"].shape[1] - 1 - batch["label_mask"][:, ::-1].argmax(axis=1)))
    return batches


def _answers(
    model: Any, batches: Sequence[tuple[Batch, np.ndarray]], count: int, vocabulary: str
) -> tuple[np.ndarray, np.ndarray]:
    """The likeliest tokens int ``[count]`` and the logarithms of their probabilities."""
    graph, state = nnx.split(model)
    found = [
        _likeliest(graph, state, {name: jnp.asarray(x) for name, x in batch.items()}, jnp.asarray(position), vocabulary)
        for batch, position in batches
    ]
    tokens, sizes = (np.concatenate([np.asarray(part) for part in parts])[:count] for parts in zip(*found, strict=True))
    return tokens, sizes


@functools.partial(jax.jit, static_argnames=("graph", "vocabulary"))
def _likeliest(
    graph: Any, state: Any, batch: dict[str, jax.Array], position: jax.Array, vocabulary: str
) -> tuple[jax.Array, jax.Array]:
    model = nnx.merge(graph, state)
    hidden = model.batch_hidden(batch)
    log_probs = jax.nn.log_softmax(model.logits(hidden[jnp.arange(len(position)), position], vocabulary))
    return log_probs.argmax(axis=-1), log_probs.max(axis=-1)
