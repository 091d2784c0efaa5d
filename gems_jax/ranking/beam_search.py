"""Beam search that cannot leave the items' identifiers, in one compiled program for a batch."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from gems_jax.models.vocabulary import Vocabulary
from gems_jax.ranking.token_logits import TokenLogits
from gems_jax.ranking.trie import Completions, Pick

# Logits in memory at once: rows of a batch are taken in turns where theirs would be more (1 GiB of float32).
_MAX_LOGITS = 2**28


class Constraint(Protocol):
    """Says which tokens may follow which; see `Trie` and `CandidateTries`."""

    @property
    def cut(self) -> int: ...
    @property
    def ends(self) -> tuple[bool, ...]: ...
    @property
    def rows(self) -> Any: ...
    def of_row(self, row: Any) -> "Constraint": ...
    def expand(
        self, depth: int, nodes: jax.Array, logits: TokenLogits, offset: jax.Array
    ) -> tuple[jax.Array, Pick]: ...
    def items_at(self, depth: int, nodes: jax.Array) -> jax.Array: ...
    def rest(self, nodes: jax.Array) -> Completions: ...


@functools.partial(jax.jit, static_argnames=("k", "beams", "vocabulary"))
def beam_search(
    model: Any,
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
    done; as many as ``beams`` of those that do not go on. Where hardly more items are left than there are beams
    (`Constraint.cut`), the tokens that are missing of all of them are read in one pass, and the choices that are left
    are made among what it finds, as they would have been made token by token.

    Args:
      model: a `gems_jax.models.family.LanguageModel`, which goes in as a pytree: ``nnx.split`` takes many times as long
        as its flattening.
      inputs: ``"input_ids"`` and ``"attention_mask"``, int ``[B, S]``.
      constraint: a `Trie`, or `CandidateTries` of ``B`` rows.
      k: number of results a row.
      beams: width of the search.
      vocabulary: what the probabilities are normalised over, ``"full"`` or ``"items"``.

    Returns:
      Item numbers int32 ``[B, k]``, best first, and their scores float32 ``[B, k]``; -1 and ``-inf`` where there
      are no more.
    """
    search = _Search(model, constraint, beams, vocabulary)
    logits, memory = model.start_beams(inputs)
    batch = len(logits)
    together = _MAX_LOGITS // logits.shape[1]
    scores, nodes = jnp.zeros((batch, 1)), jnp.zeros((batch, 1), jnp.int32)
    read, results = logits[:, None], []
    parents = tokens = nodes  # of no meaning before the first choice
    for depth in range(constraint.cut):
        if depth:
            hidden, memory = memory.take(parents).step(model, tokens[..., None])
            read = hidden[:, :, 0]
        rows = read, scores, nodes, constraint.rows
        at_once = max(1, together // read.shape[1])
        ended, (scores, parents, nodes, tokens) = _over_rows(functools.partial(search.look, depth), rows, at_once)
        results += ended
    rest = jax.vmap(search.rest)(scores, nodes, constraint.rows)
    parents, tokens, scores = (jnp.take_along_axis(of, rest.beam, axis=1) for of in (parents, tokens, scores))
    tokens = jnp.concatenate([tokens[..., None], jnp.maximum(rest.tokens, 0)], axis=2)
    hidden, _ = memory.take(parents).step(model, tokens)
    at_once = max(1, together // (tokens.shape[1] * tokens.shape[2]))
    results.append(_over_rows(search.finish, (hidden, scores, rest), at_once))
    items, values = (jnp.concatenate(parts, axis=1) for parts in zip(*results, strict=True))
    missing = max(0, k - values.shape[1])
    values = jnp.pad(values, ((0, 0), (0, missing)), constant_values=-jnp.inf)
    items = jnp.pad(items, ((0, 0), (0, missing)), constant_values=-1)
    values, order = jax.lax.top_k(values, k)
    items = jnp.take_along_axis(items, order, axis=1)
    return jnp.where(jnp.isneginf(values), -1, items), values


class _Search(NamedTuple):
    """The part of a search that stays the same."""

    model: Any
    constraint: Any
    beams: int
    vocabulary: Vocabulary

    def logits(self, depth: int, read: jax.Array) -> TokenLogits:
        """Logits of the next token, over the vocabulary; ``read`` as in `look`."""
        config = self.model.config
        ends = config.eos_token_id, config.eos_token_id + 1
        base = ends if self.vocabulary == "items" else (0, config.vocab_size)
        first = (base[0], config.vocab_size) if config.num_added_tokens else base[:1]
        if depth:
            return TokenLogits(tuple(self.model.logit_parts(read, self.vocabulary)), first)
        parts = read[:, slice(*base)], read[:, config.vocab_size :]
        return TokenLogits(parts[: len(first)], first)

    def look(
        self, depth: int, read: jax.Array, scores: jax.Array, nodes: jax.Array, row: Any
    ) -> tuple[list[tuple[jax.Array, jax.Array]], tuple[jax.Array, ...]]:
        """Looks at all continuations of a row's beams.

        Args:
          depth: number of tokens so far.
          read: ``[n, d_model]`` from the last step; before the first one ``[1, V + N]`` logits.
          scores: float32 ``[n]``, the sums so far.
          nodes: int32 ``[n]``, where the beams are.
          row: what the constraint has of the row.

        Returns:
          The items that end here and their scores, if any may; sums, parents, nodes and tokens of the beams that go
          on.
        """
        constraint, logits = self.constraint.of_row(row), self.logits(depth, read)
        offset = scores - logits.log_normaliser()
        nodes = _alive(nodes, scores)
        values, pick = constraint.expand(depth, nodes, logits, offset)
        best, chosen = jax.lax.top_k(values, min(self.beams, len(values)))
        ended: list[tuple[jax.Array, jax.Array]] = []
        if constraint.ends[depth]:
            items = constraint.items_at(depth, nodes)
            every = jnp.arange(len(nodes))
            ends = jnp.where(items >= 0, logits.at(every, self.model.config.eos_token_id) + offset, -jnp.inf)
            both = jnp.concatenate([best, ends])
            ends = jnp.where(jnp.sum(both > ends[:, None], axis=1) < self.beams, ends, -jnp.inf)
            ended = [(items, ends / (depth + 1))]
        return ended, (best, *pick(chosen))

    def rest(self, scores: jax.Array, nodes: jax.Array, row: Any) -> Completions:
        """The items that a row's beams may still lead to, see `Trie.rest`."""
        completions: Completions = self.constraint.of_row(row).rest(_alive(nodes, scores))
        return completions

    def finish(self, read: jax.Array, scores: jax.Array, rest: Completions) -> tuple[jax.Array, jax.Array]:
        """The items that a row's beams end in, and their scores.

        Args:
          read: ``[M, R + 1, d_model]``: before each of the tokens that were left, and behind them.
          scores: float32 ``[M]``, the sums before.
          rest: what was left.
        """
        count, length, width = read.shape
        logits = self.logits(self.constraint.cut, read.reshape(-1, width))
        left = jnp.sum(rest.tokens >= 0, axis=1)
        position = jnp.arange(length)
        expected = jnp.pad(rest.tokens, ((0, 0), (0, 1)))
        expected = jnp.where(position == left[:, None], self.model.config.eos_token_id, expected)
        token_scores = logits.at(jnp.arange(count * length), expected.reshape(-1)) - logits.log_normaliser()
        token_scores = jnp.where(position <= left[:, None], token_scores.reshape(count, length), 0.0)
        values = (scores + token_scores.sum(axis=1)) / (self.constraint.cut + left + 1)
        chosen = rest.items >= 0
        if count > self.beams:
            chosen = self._chosen(scores[:, None] + jnp.cumsum(token_scores, axis=1), left, rest)
        return rest.items, jnp.where(chosen, values, -jnp.inf)

    def _chosen(self, sums: jax.Array, left: jax.Array, rest: Completions) -> jax.Array:
        """Tells in which of more items than beams a search token by token would have ended, by the choices of `look`.

        Args:
          sums: float32 ``[M, R + 1]``, with each of the tokens that were left, and the end token behind them.
          left: int32 ``[M]``, number of these tokens.
          rest: what was left.

        Returns:
          bool ``[M]``.
        """
        alive, done = rest.items >= 0, jnp.zeros(len(left), bool)
        every = jnp.arange(len(left))
        for step in range(rest.tokens.shape[1]):
            goes, ends, value = alive & (left > step), alive & (left == step), sums[:, step]
            # A node's first item stands for it, as in an expansion.
            node = rest.nodes[:, step]
            first = jnp.argmax((node[:, None] == node) & goes, axis=1)
            leads = goes & (first == every)
            before = (value > value[:, None]) | ((value == value[:, None]) & (every < every[:, None]))
            best = leads & (jnp.sum(leads & before, axis=1) < self.beams)
            if self.constraint.ends[self.constraint.cut + step]:
                ahead = (best | ends) & (value > value[:, None])
                done |= ends & (jnp.sum(ahead, axis=1) < self.beams)
            alive = goes & best[first]
        return done | alive


def _alive(nodes: jax.Array, scores: jax.Array) -> jax.Array:
    """The nodes of beams, -1 for those that have ended."""
    return jnp.where(jnp.isneginf(scores), -1, nodes)


def _over_rows(function: Callable[..., Any], rows: tuple[Any, ...], at_once: int) -> Any:
    """``function(*row)`` for all rows along the first axes, ``at_once`` of them at a time."""
    if at_once >= len(rows[0]):
        return jax.vmap(function)(*rows)
    return jax.lax.map(lambda row: function(*row), rows, batch_size=at_once)
