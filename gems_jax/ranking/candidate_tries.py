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

    The number of scores at a level is that of the candidates, whatever the size of the catalogue.

    Args:
      token: int32 ``[B, C, L]``, -1 pads.
      parent: int32 ``[B, C, L]``, node of depth ``d`` that candidate ``c`` passes.
      leads: bool ``[B, C, L]``, whether candidate ``c`` is the first to pass its node of depth ``d + 1``.
      item: int32 ``[B, C]``, item numbers, -1 pads.
      length: int32 ``[B, C]``, number of tokens.
      ends: whether any identifier ends, of each depth from 0.
    """

    token: jax.Array
    parent: jax.Array
    leads: jax.Array
    item: jax.Array
    length: jax.Array
    ends: tuple[bool, ...] = dataclasses.field(metadata={"static": True})

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
        count = len(self.item)
        # Two beams never share a node.
        beam_at = jnp.full(count, -1, jnp.int32)
        beam_at = beam_at.at[jnp.where(nodes >= 0, nodes, count)].set(
            jnp.arange(len(nodes), dtype=jnp.int32), mode="drop"
        )
        beam = beam_at[self.parent[:, depth]]
        token = jnp.maximum(self.token[:, depth], 0)
        values = logits.at(jnp.maximum(beam, 0), token) + offset[jnp.maximum(beam, 0)]
        values = jnp.where(self.leads[:, depth] & (beam >= 0), values, -jnp.inf)
        return values, lambda chosen: (jnp.maximum(beam[chosen], 0), chosen, token[chosen])

    def items_at(self, depth: int, nodes: jax.Array) -> jax.Array:
        """The items whose identifiers end at nodes ``[n]`` of a depth, -1 for none."""
        node = jnp.maximum(nodes, 0)
        # What ends at a node is sorted before what goes on.
        return jnp.where((nodes >= 0) & (self.length[node] == depth), self.item[node], -1)


def build_candidate_tries(items: ItemIndex, candidates: np.ndarray) -> CandidateTries:
    """The tries of each row's candidates. Items of one token each stay in their order, which then decides ties.

    Args:
      items: identifiers ``[N, L]``.
      candidates: item numbers int ``[B, C]``, -1 pads, none twice in a row.

    Example:
      >>> items = ItemIndex(np.array([[7, 4], [5, 6], [7, -1], [5, 3]]))
      >>> tries = build_candidate_tries(items, np.array([[0, 2, 1]]))
      >>> tries.item.tolist(), tries.leads[0].T.tolist(), tries.parent[0, :, 1].tolist()
      ([[1, 2, 0]], [[True, True, False], [True, False, True]], [0, 1, 1])
    """
    candidates = np.asarray(candidates, np.int32)
    if not candidates.shape[1]:
        candidates = np.full((len(candidates), 1), -1, np.int32)
    token = np.where(candidates[..., None] >= 0, items.token_ids[np.maximum(candidates, 0)], np.int32(-1))
    levels = token.shape[2]
    if levels > 1:
        order = np.lexsort(token.transpose(2, 0, 1)[::-1], axis=-1)
        token = np.take_along_axis(token, order[..., None], axis=1)
        candidates = np.take_along_axis(candidates, order, axis=1)
    parent, leads = np.zeros(token.shape, np.int32), np.zeros(token.shape, bool)
    new = np.zeros(candidates.shape, bool)
    new[:, 0] = True
    for depth in range(levels):
        column = token[..., depth]
        new[:, 1:] |= column[:, 1:] != column[:, :-1]
        leads[..., depth] = new & (column >= 0)
        if depth + 1 < levels:
            first = np.where(leads[..., depth], np.arange(candidates.shape[1]), 0)
            parent[..., depth + 1] = np.maximum.accumulate(first, axis=1)
    length = (token >= 0).sum(axis=2).astype(np.int32)
    # Either all end at the last level or any level may be one: two programs to compile, not one for each batch.
    whole = bool((length[candidates >= 0] == levels).all())
    return CandidateTries(
        token=jnp.asarray(token),
        parent=jnp.asarray(parent),
        leads=jnp.asarray(leads),
        item=jnp.asarray(candidates),
        length=jnp.asarray(length),
        ends=(False, *(depth == levels or not whole for depth in range(1, levels + 1))),
    )
