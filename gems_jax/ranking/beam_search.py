"""Beam search that cannot leave the items' identifiers, in one compiled program for a batch."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from gems_jax.models.t5 import T5
from gems_jax.models.vocabulary import Vocabulary
from gems_jax.ranking.decoder_beams import DecoderBeams
from gems_jax.ranking.t5_beams import T5Beams
from gems_jax.ranking.trie import Pick

# Logits in memory at once: rows of a batch are taken in turns where theirs would be more (1 GiB of float32).
_MAX_LOGITS = 2**28


class Constraint(Protocol):
    """What may follow what; see `Trie` and `CandidateTries`."""

    @property
    def depth(self) -> int: ...
    @property
    def ends(self) -> tuple[bool, ...]: ...
    @property
    def rows(self) -> Any: ...
    def of_row(self, row: Any) -> "Constraint": ...
    def expand(
        self, depth: int, nodes: jax.Array, logits: jax.Array, offset: jax.Array, shift: int
    ) -> tuple[jax.Array, Pick]: ...
    def items_at(self, depth: int, nodes: jax.Array) -> jax.Array: ...


@functools.partial(jax.jit, static_argnames=("graph", "k", "beams", "vocabulary"))
def beam_search(
    graph: Any,
    state: Any,
    inputs: Mapping[str, jax.Array],
    constraint: Any,
    *,
    k: int,
    beams: int,
    vocabulary: Vocabulary,
) -> tuple[jax.Array, jax.Array]:
    """The best items of a beam search, by the mean log-probability of their tokens and the end token.

    ``score(i) = (sum_t log p(i_t | x, i_<t) + log p(end | x, i)) / (|i| + 1)``, not renormalised over the allowed
    tokens. At each step the ``beams`` best continuations of all beams by their sums are looked at: those that end are
    done; as many as ``beams`` of those that do not go on. The search goes on until nothing is left.

    Args:
      graph, state: of `nnx.split` of a `T5` or a `Decoder`.
      inputs: ``"input_ids"`` and ``"attention_mask"``, int ``[B, S]``.
      constraint: a `Trie`, or `CandidateTries` of ``B`` rows.
      k: number of results a row.
      beams: width of the search.
      vocabulary: what the probabilities are normalised over, ``"full"`` or ``"items"``.

    Returns:
      Item numbers int32 ``[B, k]``, best first, and their scores float32 ``[B, k]``; -1 and ``-inf`` where there
      are no more.
    """
    model = nnx.merge(graph, state)
    search = _Search(model, constraint, beams, vocabulary)
    kind: Any = T5Beams if isinstance(model, T5) else DecoderBeams
    logits, memory = kind.start(model, inputs, constraint.depth)
    batch = len(logits)
    together = _MAX_LOGITS // logits.shape[1]
    scores, nodes = jnp.zeros((batch, 1)), jnp.zeros((batch, 1), jnp.int32)
    read, found = search.columns(logits)[:, None], []
    goes_on: tuple[jax.Array, ...] = ()
    for depth in range(constraint.depth + 1):
        if depth:
            scores, parents, nodes, tokens = goes_on
            read, memory = memory.take(parents).step(model, tokens)
        rows = read, scores, nodes, constraint.rows
        at_once = max(1, together // read.shape[1])
        ended, goes_on = _over_rows(functools.partial(search.look, depth), rows, at_once)
        found += ended
    items, values = (jnp.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
    missing = max(0, k - values.shape[1])
    values = jnp.pad(values, ((0, 0), (0, missing)), constant_values=-jnp.inf)
    items = jnp.pad(items, ((0, 0), (0, missing)), constant_values=-1)
    values, order = jax.lax.top_k(values, k)
    items = jnp.take_along_axis(items, order, axis=1)
    return jnp.where(jnp.isneginf(values), -1, items), values


class _Search(NamedTuple):
    """What stays the same during a search."""

    model: Any
    constraint: Any
    beams: int
    vocabulary: Vocabulary

    def columns(self, logits: jax.Array) -> jax.Array:
        """The vocabulary's columns of the full one's logits, in the order of `VocabularyModel.logits`."""
        config = self.model.config
        if self.vocabulary == "full":
            return logits
        return jnp.concatenate([logits[:, config.eos_token_id, None], logits[:, config.vocab_size :]], axis=1)

    def look(
        self, depth: int, read: jax.Array, scores: jax.Array, nodes: jax.Array, row: Any
    ) -> tuple[list[tuple[jax.Array, jax.Array]], tuple[jax.Array, ...]]:
        """Looks at all continuations of a row's beams.

        Args:
          depth: number of tokens so far.
          read: ``[n, d_model]`` from the last step; before the first one ``[1, columns]`` logits.
          scores: float32 ``[n]``, the sums so far.
          nodes: int32 ``[n]``, where the beams are.
          row: what the constraint has of the row.

        Returns:
          The items that end here and their scores, if any may; sums, parents, nodes and tokens of the beams that go
          on, if any may.
        """
        config, constraint = self.model.config, self.constraint.of_row(row)
        logits = self.model.logits(read, self.vocabulary) if depth else read
        # Column of token t is t - shift; the end token's is the first of the items'.
        shift = config.vocab_size - 1 if self.vocabulary == "items" else 0
        end_column = 0 if self.vocabulary == "items" else config.eos_token_id
        offset = scores - jax.nn.logsumexp(logits, axis=-1)
        nodes = jnp.where(jnp.isneginf(scores), -1, nodes)
        ended: list[tuple[jax.Array, jax.Array]] = []
        goes_on: tuple[jax.Array, ...] = ()
        if depth < constraint.depth:
            values, pick = constraint.expand(depth, nodes, logits, offset, shift)
            best, chosen = jax.lax.top_k(values, min(self.beams, len(values)))
            goes_on = best, *pick(chosen)
        if constraint.ends[depth]:
            items = constraint.items_at(depth, nodes)
            ends = jnp.where(items >= 0, logits[:, end_column] + offset, -jnp.inf)
            if goes_on:
                both = jnp.concatenate([goes_on[0], ends])
                ends = jnp.where(jnp.sum(both > ends[:, None], axis=1) < self.beams, ends, -jnp.inf)
            ended = [(items, ends / (depth + 1))]
        return ended, goes_on


def _over_rows(function: Callable[..., Any], rows: tuple[Any, ...], at_once: int) -> Any:
    """``function(*row)`` for all rows along the first axes, ``at_once`` of them at a time."""
    if at_once >= len(rows[0]):
        return jax.vmap(function)(*rows)
    return jax.lax.map(lambda row: function(*row), rows, batch_size=at_once)
