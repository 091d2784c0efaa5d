"""A trie of its own for each row of a batch, of the few items that the row may be answered with."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from gems_jax.items.tokens import ItemIndex
from gems_jax.ranking.token_logits import TokenLogits
from gems_jax.ranking.trie import Completions, Pick

# Items beyond the beams that may be read at the end, as a share of them: where a few of a row's candidates begin alike,
# reading all of these costs less than one more pass to choose among them.
_MORE = 0.1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CandidateTries:
    """The candidates' identifiers, sorted in each row; a node is known by the first candidate that passes it.

    The number of scores at a level is that of the candidates, whatever the size of the catalogue. All is one array:
    it is made for each call, and what copying to a GPU takes goes by the number of arrays.

    Args:
      table: int32 ``[B, C, 2 L]``: each candidate's item number, its L tokens, and the first candidate that passes
        its node of depth 1 .. L - 1; -1 pads numbers and tokens.
      ends: whether any identifier ends, of each depth from 0.
      cut: the depth from which on all that beams may lead to is read at once.
      most: number of candidates that beams may lead to there, if it is not the last.
    """

    table: jax.Array | np.ndarray
    ends: tuple[bool, ...] = dataclasses.field(metadata={"static": True})
    cut: int = dataclasses.field(metadata={"static": True})
    most: int = dataclasses.field(metadata={"static": True})

    @property
    def depth(self) -> int:
        """Tokens of the longest identifier, L."""
        return len(self.ends) - 1

    @property
    def rows(self) -> "CandidateTries":
        """The part that differs from row to row of a batch: all of it."""
        return self

    def of_row(self, row: "CandidateTries") -> "CandidateTries":
        """The trie of one row of a batch, its arrays without the first axis."""
        return row

    def expand(self, depth: int, nodes: jax.Array, logits: TokenLogits, offset: jax.Array) -> tuple[jax.Array, Pick]:
        """Scores of all children of the beams' nodes, in one row: see `Trie.expand`.

        Returns:
          float32 ``[C]``, ``-inf`` for candidates that lead to no child of a beam, and what tells them apart.
        """
        every = jnp.arange(len(self.table), dtype=jnp.int32)
        token = jnp.asarray(self.table[:, 1 + depth])
        leads = token >= 0
        if depth + 1 < self.depth:
            leads &= self._first(depth + 1) == every
        if depth:
            beam = self._beam(depth, nodes)
            leads &= beam >= 0
            beam = jnp.maximum(beam, 0)
        else:
            beam = jnp.zeros_like(every)
        token = jnp.maximum(token, 0)
        values = jnp.where(leads, logits.at(beam, token) + offset[beam], -jnp.inf)
        return values, lambda chosen: (beam[chosen], chosen, token[chosen])

    def items_at(self, depth: int, nodes: jax.Array) -> jax.Array:
        """The items whose identifiers end at nodes ``[n]`` of a depth, -1 for none."""
        node = jnp.maximum(nodes, 0)
        here = nodes >= 0
        if depth < self.depth:
            # Identifiers that end at a node are sorted before those that go on.
            here &= self.table[node, 1 + depth] < 0
        return jnp.where(here, self.table[node, 0], -1)

    def rest(self, nodes: jax.Array) -> Completions:
        """The items that beams at nodes ``[n]`` of the depth ``cut`` may lead to: see `Trie.rest`."""
        if self.cut == self.depth:
            return Completions.one_each(self.items_at(self.depth, nodes))
        beam = self._beam(self.cut, nodes)
        reached = (beam >= 0) & (self.table[:, self.cut] >= 0)
        (index,) = jnp.nonzero(reached, size=self.most, fill_value=len(self.table))
        here = index < len(self.table)
        index = jnp.where(here, index, 0).astype(jnp.int32)
        known = jnp.asarray(self.table)[index]
        nodes = jnp.concatenate([known[:, self.depth + self.cut + 1 :], index[:, None]], axis=1)
        return Completions(
            beam=jnp.maximum(beam[index], 0),
            tokens=known[:, 1 + self.cut : 1 + self.depth],
            nodes=nodes,
            items=jnp.where(here, known[:, 0], -1),
        )

    def _first(self, depth: int) -> jax.Array:
        """The first candidate that passes each candidate's node of a depth from 1 to L - 1, int32 ``[C]``."""
        return jnp.asarray(self.table[:, self.depth + depth])

    def _beam(self, depth: int, nodes: jax.Array) -> jax.Array:
        """The beam, of those at nodes ``[n]`` of a depth, that passes each candidate's node: int32 ``[C]``, -1: none.

        Two beams never share a node.
        """
        count = len(self.table)
        beam_at = jnp.full(count, -1, jnp.int32)
        beam_at = beam_at.at[jnp.where(nodes >= 0, nodes, count)].set(
            jnp.arange(len(nodes), dtype=jnp.int32), mode="drop"
        )
        return beam_at[self._first(depth)]


def build_candidate_tries(items: ItemIndex, candidates: np.ndarray, beams: int) -> CandidateTries:
    """The tries of each row's candidates. Items of one token each stay in their order, which then decides ties.

    Args:
      items: identifiers ``[N, L]``.
      candidates: item numbers int ``[B, C]``, -1 pads, none twice in a row.
      beams: width of the search.

    Example:
      >>> items = ItemIndex(np.array([[7, 4], [5, 6], [7, -1], [5, 3]]))
      >>> tries = build_candidate_tries(items, np.array([[0, 2, 1]]), beams=1)
      >>> tries.table.tolist()  # number, two tokens, first candidate with the same first token
      [[[1, 5, 6, 0], [2, 7, -1, 1], [0, 7, 4, 1]]]
      >>> tries.cut, build_candidate_tries(items, np.array([[0, 1]]), beams=1).cut
      (2, 1)
    """
    candidates = np.asarray(candidates, np.int32)
    if not candidates.shape[1]:
        candidates = np.full((len(candidates), 1), -1, np.int32)
    token = np.where(candidates[..., None] >= 0, items.token_ids[np.maximum(candidates, 0)], np.int32(-1))
    levels = items.token_ids.shape[1]
    if levels > 1:
        order = np.lexsort(token.transpose(2, 0, 1)[::-1], axis=-1)
        token = np.take_along_axis(token, order[..., None], axis=1)
        candidates = np.take_along_axis(candidates, order, axis=1)
    table = np.concatenate([candidates[..., None], token, np.zeros(token[..., 1:].shape, np.int32)], axis=2)
    rows, count = candidates.shape
    every, new = np.arange(count), np.zeros(candidates.shape, bool)
    new[:, 0] = True
    cut = most = levels
    for depth in range(1, levels):
        column = token[..., depth - 1]
        new[:, 1:] |= column[:, 1:] != column[:, :-1]
        first = table[..., levels + depth] = np.maximum.accumulate(new * every, axis=1)
        if cut == levels:
            node = (first + count * np.arange(rows)[:, None])[column >= 0]
            sizes = np.sort(np.bincount(node, minlength=rows * count).reshape(rows, count), axis=1)
            allowed = min(beams + int(_MORE * beams), count)
            if sizes[:, -beams:].sum(axis=1).max() <= allowed:
                cut, most = depth, allowed
    # Either all end at the last level or any level may be one, and few values of `cut`: that makes a few programs to
    # compile, not one for each batch.
    whole = bool((token[..., -1] >= 0)[candidates >= 0].all())
    ends = (False, *(depth == levels or not whole for depth in range(1, levels + 1)))
    return CandidateTries(table, ends, cut, most)
