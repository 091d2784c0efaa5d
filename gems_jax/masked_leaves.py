"""Leaves that optax masks from a transform: does any other transform merge their task axis?

``optax.partition``, ``optax.masked`` and ``optax.selective_transform`` show a transform its own leaves alone and pass
the others on as they come: stacked, so that ``optax.apply_updates`` gives a frozen parameter the shape ``[T, *shape]``.
No transform sees another's leaves. But ``init`` of the parts of one partition follow each other, each with what the
others leave out: the transforms that merge a task axis tell of their leaves there, and ask in ``update`` who told of
the rest. Nothing but a warning depends on it.
"""

import dataclasses
import warnings

import optax

from gems_jax.first_few import first_few
from gems_jax.leaf_path import named_leaves
from gems_jax.types import PyTree

_MOST = 64  # partitions remembered
_SHOWN = 3  # leaves named


@dataclasses.dataclass(frozen=True)
class _Part:
    """A transform's view of a partition: paths of its own leaves, and of the leaves (or trees) that are masked."""

    own: frozenset[str]
    masked: frozenset[str]

    def leaves_out(self, path: str) -> bool:
        """Whether a leaf is masked, or in a tree that is: the mask may be a prefix of the parameters."""
        names = path.split("/")
        return "" in self.masked or any("/".join(names[: i + 1]) in self.masked for i in range(len(names)))

    def fits(self, other: "_Part") -> bool:
        """Whether both can be of one partition."""
        return all(map(other.leaves_out, self.own)) and all(map(self.leaves_out, other.own))


@dataclasses.dataclass
class _Partition:
    """Parts told of one after the other, and whether one of them has been asked for since: then no other belongs."""

    parts: list[_Part]
    complete: bool = False

    def unmerged(self, part: _Part) -> list[str]:
        """Leaves (or trees) that a part leaves out and no part has for its own."""
        own = [path for other in self.parts for path in other.own]
        return sorted(m for m in part.masked if not any(p == m or p.startswith(f"{m}/") or not m for p in own))


_partitions: list[_Partition] = []


def _part_of(tree: PyTree) -> _Part:
    is_masked = lambda x: isinstance(x, optax.MaskedNode)  # noqa: E731
    paths: dict[bool, set[str]] = {False: set(), True: set()}
    for path, leaf in named_leaves(tree, is_masked):
        paths[is_masked(leaf)].add(path)
    return _Part(frozenset(paths[False]), frozenset(paths[True]))


def tell_leaves(params: PyTree) -> None:
    """For ``init`` of a transform that merges the task axis of its leaves: remembers which these are.

    Args:
      params: as they come, ``optax.MaskedNode`` in place of leaves that are another's.
    """
    part = _part_of(params)
    if not part.masked:
        return
    last = _partitions[-1] if _partitions else None
    if last is not None and not last.complete and all(map(part.fits, last.parts)):
        last.parts.append(part)
    else:
        _partitions.append(_Partition([part]))
        del _partitions[:-_MOST]


def warn_of_stacked_leaves(updates: PyTree, name: str) -> None:
    """For ``update`` of the same transform: warns of masked leaves that no transform has told of.

    No error, since a transform of the user's own may merge them. Nothing is known of a transform whose ``init``
    was not called here, and nothing is said.

    Args:
      updates: as they come.
      name: of the transform, for the warning.
    """
    part = _part_of(updates)
    # A transform without leaves of its own has nothing to compare: its neighbour, which has all, told of none.
    known = part.masked and part.own
    partition = next((p for p in reversed(_partitions) if part in p.parts), None) if known else None
    if partition is None:
        return
    partition.complete = True
    unmerged = partition.unmerged(part)
    if unmerged:
        shown = first_few(map(repr, unmerged), _SHOWN)
        warnings.warn(
            f"{shown}: masked from {name}, and no transform beside it merges their task axis, so their updates "
            "keep the shape [T, *shape], and optax.apply_updates gives it to the parameters; to freeze them: "
            "optax.partition({'train': tx, 'freeze': optax.chain(gems_jax.merge_tasks(), optax.set_to_zero())}, "
            "labels), and merge_tasks() first also in other transforms beside it",
            stacklevel=3,
        )
