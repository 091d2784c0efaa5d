"""T5's span corruption: inputs with spans replaced by sentinels, targets that spell the spans out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from gems_jax.data.text.general_text import shuffled_starts, spread_chunks
from gems_jax.types import Batch


def span_lengths(input_length: int, noise_density: float = 0.15, mean_span: float = 3.0) -> tuple[int, int, int, int]:
    """How a stretch of text is cut so that a corrupted input has exactly ``input_length`` tokens.

    With ``n`` removed tokens in ``s`` spans, text of ``l`` tokens gives an input of ``l - n + s + 1`` tokens (a
    sentinel a span, the end token) and a target of ``n + s + 1``.

    Returns:
      ``l``, ``n``, ``s`` and the length of the target.

    Example:
      >>> span_lengths(128)
      (141, 21, 7, 29)
    """

    def lengths(text: int) -> tuple[int, int, int, int]:
        noise = min(max(round(text * noise_density), 1), text - 1)
        spans = max(round(noise / mean_span), 1)
        spans = min(spans, text - noise)
        return text - noise + spans + 1, noise, spans, noise + spans + 1

    if not 0.0 < noise_density < 1.0 or mean_span < 1.0:
        raise ValueError(f"need 0 < noise_density < 1 and mean_span >= 1, got {noise_density} and {mean_span}")
    if input_length < 5:
        raise ValueError(f"input_length {input_length} is too short for span corruption; use at least 5")
    text = 2
    while lengths(text + 1)[0] <= input_length:
        text += 1
    input_now, noise, spans, target = lengths(text)
    if input_now != input_length:
        raise ValueError(f"no stretch of text gives inputs of exactly {input_length} tokens at density {noise_density}")
    return text, noise, spans, target


def num_chunks(tokens: np.ndarray, input_length: int, noise_density: float = 0.15, mean_span: float = 3.0) -> int:
    """Examples one pass over the tokens gives."""
    text = span_lengths(input_length, noise_density, mean_span)[0]
    return (len(tokens) - (text - 1)) // text


def span_corruption_batch(
    tokens: np.ndarray,
    step: int,
    batch_size: int,
    input_length: int,
    seed: int,
    *,
    sentinel_ids: Sequence[int],
    noise_density: float = 0.15,
    mean_span: float = 3.0,
    eos_token_id: int = 1,
    decoder_start_token_id: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Batch:
    """Batch ``step`` of an endless stream over a text: whole epochs of chunks, each in its own order and shift.

    A pure function of its arguments. All rows are full: no padding is needed.

    Args:
      tokens: int ``[N]``, the text.
      step: number of the batch.
      batch_size: ``B``, rows of the global batch; process ``p`` of ``n`` gets rows ``[p B / n, (p + 1) B / n)``.
      input_length: ``S``.
      seed: of order, shifts and spans.
      sentinel_ids: the sentinels in the order of their use.
      noise_density: share of the tokens removed.
      mean_span: mean tokens of a removed span.
      eos_token_id: ends inputs and targets.
      decoder_start_token_id: first decoder input.
      process_index: ``p``.
      process_count: ``n``.

    Returns:
      ``input_ids``, ``attention_mask`` int32 ``[B / n, S]``; ``decoder_input_ids``, ``labels``, ``label_mask`` int32
      ``[B / n, S_target]``, the decoder inputs being the labels shifted right.
    """
    text = span_lengths(input_length, noise_density, mean_span)[0]
    chunks = num_chunks(tokens, input_length, noise_density, mean_span)
    if chunks < 1:
        raise ValueError(f"{len(tokens)} tokens of text are too few for inputs of {input_length} ({text} needed)")
    if batch_size % process_count:
        raise ValueError(f"batch_size {batch_size} must be divisible by {process_count} processes")
    starts = shuffled_starts(len(tokens), text, step, batch_size, seed)
    rng = np.random.default_rng([seed, 1, step])
    batch = corrupt(
        np.asarray(tokens)[starts[:, None] + np.arange(text)],
        rng,
        sentinel_ids=sentinel_ids,
        noise_density=noise_density,
        mean_span=mean_span,
        eos_token_id=eos_token_id,
        decoder_start_token_id=decoder_start_token_id,
    )
    local = batch_size // process_count
    return {name: array[process_index * local : (process_index + 1) * local] for name, array in batch.items()}


def heldout_batches(
    tokens: np.ndarray,
    batch_size: int,
    input_length: int,
    seed: int = 0,
    *,
    sentinel_ids: Sequence[int],
    max_batches: int | None = None,
    noise_density: float = 0.15,
    mean_span: float = 3.0,
    eos_token_id: int = 1,
    decoder_start_token_id: int = 0,
) -> Iterator[Batch]:
    """The chunks of a text once, in order, for evaluation; missing rows of the last batch have all masks 0.

    With ``max_batches`` the chunks are spread evenly over the text. Arguments and batches are otherwise those
    of `span_corruption_batch`.
    """
    text = span_lengths(input_length, noise_density, mean_span)[0]
    chunks = len(tokens) // text
    if chunks < 1:
        raise ValueError(f"{len(tokens)} tokens of text are too few for inputs of {input_length} ({text} needed)")
    for number, rows in enumerate(spread_chunks(chunks, batch_size, max_batches)):
        missing = batch_size - len(rows)
        starts = text * np.concatenate([rows, np.zeros(missing, rows.dtype)])
        batch = corrupt(
            np.asarray(tokens)[starts[:, None] + np.arange(text)],
            np.random.default_rng([seed, 2, number * batch_size]),
            sentinel_ids=sentinel_ids,
            noise_density=noise_density,
            mean_span=mean_span,
            eos_token_id=eos_token_id,
            decoder_start_token_id=decoder_start_token_id,
        )
        for name in ("attention_mask", "label_mask"):
            batch[name][batch_size - missing :] = 0
        yield batch


def corrupt(
    chunks: np.ndarray,
    rng: np.random.Generator,
    *,
    sentinel_ids: Sequence[int],
    noise_density: float = 0.15,
    mean_span: float = 3.0,
    eos_token_id: int = 1,
    decoder_start_token_id: int = 0,
) -> Batch:
    """Remove spans, other ones in each row, from chunks of text: int ``[B, l]``, ``l`` as `span_lengths` says."""
    batch_size, text = chunks.shape
    noise = min(max(round(text * noise_density), 1), text - 1)
    spans = min(max(round(noise / mean_span), 1), text - noise)
    if spans > len(sentinel_ids):
        raise ValueError(f"{spans} spans an input, but only {len(sentinel_ids)} sentinels; shorten the inputs")
    if noise == text - noise:
        raise ValueError("inputs and targets would have equal lengths; choose another noise_density")
    removed = _noise_mask(rng, batch_size, text, noise, spans)
    sentinels = np.asarray(sentinel_ids[:spans], chunks.dtype)
    end = np.full((batch_size, 1), eos_token_id, chunks.dtype)
    input_ids = np.concatenate([_collapse(chunks, removed, sentinels), end], axis=1).astype(np.int32)
    # The target is the same text with the kept spans collapsed; each sentinel stands before its removed span.
    labels = np.concatenate([_collapse(chunks, ~removed, sentinels), end], axis=1).astype(np.int32)
    start = np.full((batch_size, 1), decoder_start_token_id, np.int32)
    return {
        "input_ids": input_ids,
        "attention_mask": np.ones_like(input_ids),
        "decoder_input_ids": np.concatenate([start, labels[:, :-1]], axis=1),
        "labels": labels,
        "label_mask": np.ones_like(labels),
    }


def _noise_mask(rng: np.random.Generator, batch_size: int, text: int, noise: int, spans: int) -> np.ndarray:
    """bool ``[B, l]``: alternating kept and removed spans, the first one kept, the last one removed."""
    removed = _partition(rng, batch_size, noise, spans)
    kept = _partition(rng, batch_size, text - noise, spans)
    ends = np.cumsum(np.stack([kept, removed], axis=2).reshape(batch_size, 2 * spans), axis=1)
    spans_before = (np.arange(text)[None, :, None] >= ends[:, None, :]).sum(axis=2)
    return spans_before % 2 == 1


def _partition(rng: np.random.Generator, batch_size: int, total: int, parts: int) -> np.ndarray:
    """int ``[B, parts]``: uniformly random ways to write ``total`` as a sum of positive integers."""
    cuts = np.sort(np.argsort(rng.random((batch_size, total - 1)), axis=1)[:, : parts - 1], axis=1) + 1
    edges = np.concatenate([np.zeros((batch_size, 1), int), cuts, np.full((batch_size, 1), total)], axis=1)
    return np.diff(edges, axis=1)


def _collapse(chunks: np.ndarray, hidden: np.ndarray, sentinels: np.ndarray) -> np.ndarray:
    """Each run of hidden tokens replaced by the next sentinel; all rows have equally many of both."""
    first = hidden & ~np.pad(hidden, ((0, 0), (1, 0)))[:, :-1]
    number = np.minimum(np.cumsum(first, axis=1) - 1, len(sentinels) - 1)
    text = np.where(first, sentinels[number], chunks)
    return text[first | ~hidden].reshape(len(chunks), -1)
