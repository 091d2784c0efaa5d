"""The items' identifiers as a trie in flat arrays on the device: which tokens may follow which."""

import dataclasses
import weakref
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gems_jax.items.tokens import ItemIndex
from gems_jax.ranking.token_logits import TokenLogits

# From indices into an expansion's scores to the beam, node and token that each stands for, int32 [n] each.
Pick = Callable[[jax.Array], tuple[jax.Array, jax.Array, jax.Array]]


class Completions(NamedTuple):
    """The items that a row's beams may still lead to, in the order of the trie.

    Args:
      beam: int32 ``[M]``, the beam that leads to each.
      tokens: int32 ``[M, R]``, what is left of its identifier, -1 pads.
      nodes: int32 ``[M, R]``, the nodes that these tokens lead to: the same number for the same node of a depth.
      items: int32 ``[M]``, -1 for none.
    """

    beam: jax.Array
    tokens: jax.Array
    nodes: jax.Array
    items: jax.Array

    @classmethod
    def one_each(cls, items: jax.Array) -> "Completions":
        """Completions of beams that lead to one item each, int32 ``[n]``, and have read all of its tokens."""
        nothing = jnp.zeros((len(items), 0), jnp.int32)
        return cls(jnp.arange(len(items), dtype=jnp.int32), nothing, nothing, items)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Trie:
    """A trie in compressed rows, level after level, so that a node's children stand side by side.

    Node 0 is the root; the children of node ``n`` are the nodes from ``first_child[n]`` up to
    ``first_child[n + 1]``, in the order of their tokens. The deepest nodes have no entry of their own in
    ``first_child``.

    Args:
      token: int32 ``[nodes]``, the token that leads to each node (0 for the root).
      first_child: int32 ``[inner nodes + 1]``.
      item: int32 ``[nodes]``, the item whose identifier ends at each node, -1 for none.
      degrees: most children a node has, of each depth from 0.
      ends: whether any identifier ends, of each depth from 0.
    """

    token: jax.Array
    first_child: jax.Array
    item: jax.Array
    degrees: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    ends: tuple[bool, ...] = dataclasses.field(metadata={"static": True})

    @property
    def depth(self) -> int:
        """Tokens of the longest identifier, L."""
        return len(self.degrees)

    @property
    def cut(self) -> int:
        """The depth from which on all that beams may lead to is read at once: the last, a catalogue has too much."""
        return self.depth

    @property
    def nbytes(self) -> int:
        """Memory of the arrays."""
        return sum(array.nbytes for array in (self.token, self.first_child, self.item))

    @property
    def rows(self) -> None:
        """The part that differs from row to row of a batch: nothing."""
        return None

    def of_row(self, row: None) -> "Trie":
        """The trie of one row of a batch."""
        return self

    def expand(self, depth: int, nodes: jax.Array, logits: TokenLogits, offset: jax.Array) -> tuple[jax.Array, Pick]:
        """Scores of all children of the beams' nodes.

        Args:
          depth: of the nodes, below ``self.depth``.
          nodes: int32 ``[n]``, -1 for a beam that has ended.
          logits: of the next token of ``n`` beams.
          offset: float32 ``[n]``, added to each beam's logits.

        Returns:
          float32 ``[n * degree]``, ``-inf`` where a node has fewer children, and what tells them apart.
        """
        degree = self.degrees[depth]
        offsets = jnp.arange(degree, dtype=jnp.int32)
        node = jnp.maximum(nodes, 0)
        first = self.first_child[node]
        count = jnp.where(nodes >= 0, self.first_child[node + 1] - first, 0)
        child = first[:, None] + offsets
        token = self.token.at[child].get(mode="clip")
        values = logits.at(jnp.arange(len(nodes))[:, None], token) + offset[:, None]
        values = jnp.where(offsets < count[:, None], values, -jnp.inf)

        def pick(chosen: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
            beam = chosen // degree
            picked = first[beam] + chosen % degree
            return beam, picked, self.token.at[picked].get(mode="clip")

        return values.reshape(-1), pick

    def items_at(self, depth: int, nodes: jax.Array) -> jax.Array:
        """The items whose identifiers end at nodes ``[n]`` of a depth, -1 for none."""
        return jnp.where(nodes >= 0, self.item[jnp.maximum(nodes, 0)], -1)

    def rest(self, nodes: jax.Array) -> Completions:
        """The items that beams at nodes ``[n]`` of depth `cut` lead to, one each; -1 is a beam that has ended."""
        return Completions.one_each(self.items_at(self.depth, nodes))


def build_trie(items: ItemIndex) -> Trie:
    """The trie of all items but those removed, made by sorting: a node is an interval of the sorted identifiers.

    Args:
      items: identifiers ``[N, L]``.

    Example:
      >>> trie = build_trie(ItemIndex(np.array([[7, 4], [5, 6], [7, -1], [5, 3]])))
      >>> trie.token.tolist(), trie.first_child.tolist(), trie.item.tolist()
      ([0, 5, 7, 3, 6, 4], [1, 3, 5, 6], [-1, -1, 2, 3, 1, 0])
    """
    ids = items.token_ids
    order = np.lexsort(ids.T[::-1]).astype(np.int32)
    if items.removed:
        order = order[~np.isin(order, list(items.removed))]
        ids = ids[:, (ids[order] >= 0).any(0)]
    columns = [np.ascontiguousarray(column[order]) for column in ids.T]
    new = np.zeros(len(order), bool)
    new[0] = True
    token, item = [np.zeros(1, np.int32)], [np.full(1, -1, np.int32)]
    first_child, degrees = [], []
    level = np.zeros(1, np.int64)  # the first sorted identifier of each node
    nodes = 1
    for depth, column in enumerate(columns):
        new[1:] |= column[1:] != column[:-1]
        children = np.flatnonzero(new & (column >= 0))
        # Identifiers in between that are too short for a node do not matter: their parents have begun before.
        parent = np.searchsorted(level, children, side="right") - 1
        count = np.bincount(parent, minlength=len(level))
        first_child.append(nodes + np.cumsum(count) - count)
        degrees.append(int(count.max()))
        token.append(column[children])
        last = depth + 1 == len(columns)
        stops = np.ones(len(children), bool) if last else columns[depth + 1][children] < 0
        item.append(np.where(stops, order[children], -1).astype(np.int32))
        nodes += len(children)
        level = children
    if nodes > np.iinfo(np.int32).max:
        raise ValueError(f"the identifiers make {nodes} nodes, more than int32 can number: use shorter identifiers")
    first_child.append(np.array([nodes]))
    return Trie(
        token=jnp.asarray(np.concatenate(token)),
        first_child=jnp.asarray(np.concatenate(first_child), jnp.int32),
        item=jnp.asarray(np.concatenate(item)),
        degrees=tuple(degrees),
        ends=tuple(bool((numbers >= 0).any()) for numbers in item),
    )


def as_csr(trie: Trie) -> dict[str, np.ndarray]:
    """A trie as a sparse table of states and tokens in compressed rows, for decoders elsewhere.

    Returns:
      ``row_offsets`` int32 ``[states + 1]``: the steps out of state ``s`` are those from ``row_offsets[s]`` up to
      ``row_offsets[s + 1]``; of each step its ``token`` and its ``next_state``, int32 ``[steps]``; ``item`` int32
      ``[states]``, the item whose identifier ends at each state, -1 for none. State 0 is the root.

    Example:
      >>> csr = as_csr(build_trie(ItemIndex(np.array([[7, 4], [5, 6], [7, -1], [5, 3]]))))
      >>> [array.tolist() for array in csr.values()]
      [[0, 2, 4, 5, 5, 5, 5], [5, 7, 3, 6, 4], [1, 2, 3, 4, 5], [-1, -1, 2, 3, 1, 0]]
    """
    token, first_child, item = (np.asarray(array) for array in (trie.token, trie.first_child, trie.item))
    steps = len(token) - 1
    offsets = np.full(len(token) + 1, steps, np.int32)
    offsets[: len(first_child)] = first_child - 1
    return {
        "row_offsets": offsets,
        "token": token[1:],
        "next_state": np.arange(1, steps + 1, dtype=np.int32),
        "item": item,
    }


class Catalogue(NamedTuple):
    """A trie and which tokens it holds.

    Args:
      trie: of all items.
      tokens: int32, sorted, each once.
    """

    trie: Trie
    tokens: np.ndarray


# Items never change; their arrays go when they go.
_CATALOGUES: weakref.WeakKeyDictionary[ItemIndex, Catalogue] = weakref.WeakKeyDictionary()


def catalogue_of(items: ItemIndex) -> Catalogue:
    """The trie of all items, made at the first call and kept with them from then on.

    Args:
      items: identifiers ``[N, L]``.

    Example:
      >>> items = ItemIndex(np.array([[5], [6]]))
      >>> catalogue_of(items) is catalogue_of(items)
      True
    """
    if items not in _CATALOGUES:
        trie = build_trie(items)
        _CATALOGUES[items] = Catalogue(trie, np.unique(np.asarray(trie.token[1:])))
    return _CATALOGUES[items]
