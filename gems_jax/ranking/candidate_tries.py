"""A trie of its own for each row of a batch, of the few items that the row may be answered with."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from gems_jax.items import ItemIndex
from gems_jax.ranking.token_logits import TokenLogits
from gems_jax.ranking.trie import Pick


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CandidateTries:
    """The candidates' identifiers, sorted in each row; a node is known by the first candidate that passes it.

    The number of scores at a level is that of the candidates, whatever the size of the catalogue. All is one array:
    it is made for each call, and what copying to a GPU takes goes by the number of arrays.

    Args:
      table: int32 ``[B, C, 2 L]``. Of each candidate its item number, its L tokens, and the first candidate that passes
        its node of depth 1 .. L - 1; -1 pads numbers and tokens.
      ends: whether any identifier ends, of each depth from 0.
      alone: the least depth, from 1, from which on no two candidates of a row share a node.
    """

    table: jax.Array | np.ndarray
    ends: tuple[bool, ...] = dataclasses.field(metadata={"static": True})
    alone: int = dataclasses.field(metadata={"static": True})

    @property
    def depth(self) -> int:
        """Tokens of the longest identifier, L."""
        return len(self.ends) - 1

    @property
    def rows(self) -> "CandidateTries":
        """What differs from row to row of a batch: all of it."""
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
            # Two beams never share a node.
            beam_at = jnp.full(len(every), -1, jnp.int32)
            beam_at = beam_at.at[jnp.where(nodes >= 0, nodes, len(every))].set(
                jnp.arange(len(nodes), dtype=jnp.int32), mode="drop"
            )
            beam = beam_at[self._first(depth)]
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
            # What ends at a node is sorted before what goes on.
            here &= self.table[node, 1 + depth] < 0
        return jnp.where(here, self.table[node, 0], -1)

    def rest(self, nodes: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What is left of the items at nodes ``[n]`` of the depth `alone`: see `Trie.rest`."""
        known = jnp.asarray(self.table)[jnp.maximum(nodes, 0)]
        return known[:, 1 + self.alone : 1 + self.depth], jnp.where(nodes >= 0, known[:, 0], -1)

    def _first(self, depth: int) -> jax.Array:
        """The first candidate that passes each candidate's node of a depth from 1 to L - 1, int32 ``[C]``."""
        return jnp.asarray(self.table[:, self.depth + depth])


def build_candidate_tries(items: ItemIndex, candidates: np.ndarray) -> CandidateTries:
    """The tries of each row's candidates. Items of one token each stay in their order, which then decides ties.

    Args:
      items: identifiers ``[N, L]``.
      candidates: item numbers int ``[B, C]``, -1 pads, none twice in a row.

    Example:
      >>> items = ItemIndex(np.array([[7, 4], [5, 6], [7, -1], [5, 3]]))
      >>> tries = build_candidate_tries(items, np.array([[0, 2, 1]]))
      >>> tries.table.tolist()  # number, two tokens, first candidate with the same first token
      [[[1, 5, 6, 0], [2, 7, -1, 1], [0, 7, 4, 1]]]
      >>> tries.alone, build_candidate_tries(items, np.array([[0, 1]])).alone
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
    every, new = np.arange(candidates.shape[1]), np.zeros(candidates.shape, bool)
    new[:, 0] = True
    alone = levels
    for depth in range(1, levels):
        column = token[..., depth - 1]
        new[:, 1:] |= column[:, 1:] != column[:, :-1]
        first = table[..., levels + depth] = np.maximum.accumulate(new * every, axis=1)
        if alone == levels and ((first == every) | (column < 0)).all():
            alone = depth
    # Either all end at the last level or any level may be one, and few values of `alone`: that makes a few programs to
    # compile, not one for each batch.
    whole = bool((token[..., -1] >= 0)[candidates >= 0].all())
    return CandidateTries(table, (False, *(depth == levels or not whole for depth in range(1, levels + 1))), alone)
