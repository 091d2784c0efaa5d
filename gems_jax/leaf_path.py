"""The one spelling of a leaf's path."""

from collections.abc import Callable
from typing import Any

import jax

from gems_jax.boxes import unboxed
from gems_jax.types import PyTree

# NNX variables appear in a path as one more step, which Linen and plain trees do not have.
_WRAPPERS = ("value", "raw_value")


def leaf_path(path: tuple[Any, ...]) -> str:
    """Spells the path of a pytree leaf as ``"block/attention/q/kernel"``.

    The same leaf has the same spelling in a plain dictionary, a Linen parameter tree and an NNX state: the
    step into an NNX variable (``.value``) is dropped, and keys, attributes and positions are joined by ``/``.

    Args:
      path: key path as given by ``jax.tree_util.tree_map_with_path``.

    Returns:
      The path as text; ``""`` for a tree that is a single leaf.

    Example:
      >>> import jax
      >>> tree = {"block": [{"kernel": 1.0}]}
      >>> [leaf_path(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
      ['block/0/kernel']
    """
    steps = [jax.tree_util.keystr((key,), simple=True) for key in path]
    if len(steps) > 1 and steps[-1] in _WRAPPERS and isinstance(path[-1], jax.tree_util.GetAttrKey):
        steps.pop()
    return "/".join(steps)


def named_leaves(tree: PyTree, is_leaf: Callable[[Any], bool] | None = None) -> list[tuple[str, Any]]:
    """Leaves in order, each with its path; those in boxes have the path that they have without.

    Example:
      >>> from flax import nnx
      >>> named_leaves({"block": {"kernel": nnx.Param(1.0)}})
      [('block/kernel', 1.0)]
    """
    return [(leaf_path(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(unboxed(tree), is_leaf)]
