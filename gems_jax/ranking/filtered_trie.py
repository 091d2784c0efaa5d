"""The catalogue's trie with another choice of items in each row of a batch, in arrays of one shape."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from gems_jax.ranking.token_logits import TokenLogits
from gems_jax.ranking.trie import Completions, Pick, Trie


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FilteredTrie:
    """A trie of which each row has only the items that are listed, or all others: a search as if no more were there.

    Args:
      trie: of all items.
      nodes: int32 ``[B, M]``, nodes that every item below is listed of or, where the listed ones stay, any; behind
        them a number that no node has.
      items: int32 ``[B, K]``, the items listed, -1 pads.
      keeps: bool ``[B]``, whether the items listed are those that stay.
    """

    trie: Trie
    nodes: jax.Array | np.ndarray
    items: jax.Array | np.ndarray
    keeps: jax.Array | np.ndarray

    @property
    def cut(self) -> int:
        """The depth from which on all that beams may lead to is read at once, see `Trie.cut`."""
        return self.trie.cut

    @property
    def ends(self) -> tuple[bool, ...]:
        """Whether any identifier ends, of each depth from 0."""
        return self.trie.ends

    @property
    def rows(self) -> tuple[jax.Array | np.ndarray, ...]:
        """The part that differs from row to row of a batch: the lists."""
        return self.nodes, self.items, self.keeps

    def of_row(self, row: tuple[jax.Array, ...]) -> "FilteredTrie":
        """The trie of one row of a batch, its lists without the first axis."""
        return FilteredTrie(self.trie, *row)

    def expand(self, depth: int, nodes: jax.Array, logits: TokenLogits, offset: jax.Array) -> tuple[jax.Array, Pick]:
        """Scores of all children of the beams' nodes, ``-inf`` of those that lead to no item: see `Trie.expand`."""
        values, pick = self.trie.expand(depth, nodes, logits, offset)
        _, children, _ = pick(jnp.arange(len(values), dtype=jnp.int32))
        listed = jnp.zeros(len(self.trie.token), bool).at[self.nodes].set(True, mode="drop")
        stays = listed.at[children].get(mode="clip") == self.keeps
        return jnp.where(stays, values, -jnp.inf), pick

    def items_at(self, depth: int, nodes: jax.Array) -> jax.Array:
        """The items whose identifiers end at nodes ``[n]`` of a depth, -1 for none."""
        items = self.trie.items_at(depth, nodes)
        listed = (items[:, None] == self.items).any(axis=1)
        return jnp.where(listed == self.keeps, items, -1)

    def rest(self, nodes: jax.Array) -> Completions:
        """The items that beams at nodes ``[n]`` of depth `cut` lead to, one each: see `Trie.rest`."""
        return Completions.one_each(self.items_at(self.trie.depth, nodes))


class TrieFilter:
    """Makes the `FilteredTrie` of a batch's lists of items; the work goes by the length of the lists.

    Args:
      trie: of N items.

    Example:
      >>> from gems_jax.items.tokens import ItemIndex
      >>> from gems_jax.ranking.trie import build_trie
      >>> filters = TrieFilter(build_trie(ItemIndex(np.array([[7, 4], [5, 6], [7, -1], [5, 3]]))))
      >>> without = filters.filtered([np.array([1, 3]), np.array([0])], keeps=[False, True], size=2)
      >>> without.nodes.tolist()  # both items below node 1 are left out; item 0 is reached by nodes 2 and 5
      [[1, 3, 4, 6], [2, 5, 6, 6]]
    """

    def __init__(self, trie: Trie):
        self._trie = trie
        first_child, item = np.asarray(trie.first_child), np.asarray(trie.item)
        self._nodes = len(item)
        parent = np.zeros(self._nodes, np.int32)
        parent[1:] = np.repeat(np.arange(len(first_child) - 1, dtype=np.int32), np.diff(first_child))
        at = np.zeros(int(item.max()) + 1, np.int32)
        at[item[item >= 0]] = np.flatnonzero(item >= 0)
        # The nodes of each item's tokens, the last first; 0, the root, where it has fewer.
        columns = [at]
        for _ in range(1, trie.depth):
            columns.append(parent[columns[-1]])
        self._paths = np.stack(columns, axis=1)
        self._items_below = np.bincount(self._paths[self._paths > 0], minlength=self._nodes)

    def filtered(self, lists: Sequence[np.ndarray], keeps: Sequence[bool], size: int) -> FilteredTrie:
        """The trie of a batch.

        Args:
          lists: item numbers of each row, none twice.
          keeps: of each row, whether the items listed are those that stay; else they are left out.
          size: room in the arrays for the items of a row.

        Raises:
          ValueError: a row lists more items than there is room for.
        """
        longest = max(map(len, lists), default=0)
        if longest > size:
            raise ValueError(f"a row lists {longest} items, and there is room for {size}: make the room larger")
        stays = np.asarray(keeps, bool)
        rows = np.repeat(np.arange(len(lists)), [len(listed) for listed in lists])
        listed = np.concatenate([np.zeros(0, np.int64), *lists])
        items = np.full((len(lists), size), -1, np.int32)
        items[rows, _places(rows)] = listed
        # Of all rows at once: a node of a row is one number.
        passed = self._paths[listed]
        found, count = np.unique((rows[:, None] * self._nodes + passed)[passed > 0], return_counts=True)
        rows, found = np.divmod(found, self._nodes)
        whole = stays[rows] | (count == self._items_below[found])
        rows, found = rows[whole], found[whole]
        nodes = np.full((len(lists), size * self._trie.depth), self._nodes, np.int32)
        nodes[rows, _places(rows)] = found
        return FilteredTrie(self._trie, nodes, items, stays)


def _places(rows: np.ndarray) -> np.ndarray:
    """Of sorted row numbers, how many there are of the same before each."""
    return np.arange(len(rows)) - np.searchsorted(rows, rows)
