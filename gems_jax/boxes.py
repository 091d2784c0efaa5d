"""Boxes around arrays that tell of their axes, such as Flax's: names of mesh axes that sharding goes by.

A box describes an array of the parameter's shape. States keep arrays of other shapes too (bases, low-rank
moments), and those lie in no box: a name too many is an error where the array is placed, or a wrong placement.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gems_jax.types import PyTree


def is_box(x: Any) -> bool:
    """Whether a tree's node holds one value and is told of axes that come and go.

    Flax NNX's variables are such nodes, and Linen's ``AxisMetadata``, whatever the subclass.

    Example:
      >>> from flax import nnx
      >>> import flax.linen as nn
      >>> [is_box(x) for x in (nnx.Param(1.0), nn.Partitioned(1.0, ()), {"value": 1.0}, 1.0)]
      [True, True, False, False]
    """
    kind = type(x)
    if not (hasattr(kind, "add_axis") and hasattr(kind, "remove_axis")):
        return False
    children = _children(x)
    return len(children) == 1 and children[0] is not x


def _children(x: Any) -> list[Any]:
    return jax.tree.leaves(x, is_leaf=lambda y: y is not x)


def _content(box: Any) -> Any:
    # Not by the box's own method, which may place the array.
    return _children(box)[0]


def boxed(value: Any, box: Any) -> Any:
    """A value in a box like this one."""
    treedef: Any = jax.tree.structure(box, is_leaf=lambda y: y is not box)
    return treedef.unflatten([value])


def unboxed(tree: PyTree) -> PyTree:
    """The tree without its boxes, leaves in the same order.

    Example:
      >>> import flax.linen as nn
      >>> unboxed({"kernel": nn.Partitioned(1.0, ("fsdp",)), "bias": 2.0})
      {'bias': 2.0, 'kernel': 1.0}
    """
    return jax.tree.map(lambda x: unboxed(_content(x)) if is_box(x) else x, tree, is_leaf=is_box)


def map_with_path(
    function: Callable[[tuple[Any, ...], Any], Any], tree: PyTree, is_leaf: Callable[[Any], bool] | None = None
) -> PyTree:
    """``jax.tree_util.tree_map_with_path`` with the paths of the unboxed tree; the result is boxed as the tree.

    Example:
      >>> import flax.linen as nn
      >>> map_with_path(lambda path, x: len(path), {"kernel": nn.Partitioned(1.0, ("fsdp",))})["kernel"].value
      1
    """

    def each(path: tuple[Any, ...], x: Any) -> Any:
        if not is_box(x):
            return function(path, x)
        return boxed(map_with_path(lambda rest, y: function((*path, *rest), y), _content(x), is_leaf), x)

    return jax.tree_util.tree_map_with_path(each, tree, is_leaf=lambda x: is_box(x) or bool(is_leaf and is_leaf(x)))


def is_like(tree: PyTree, treedef: Any) -> bool:
    """Whether a tree has this structure, with anything as its leaves."""
    try:
        treedef.flatten_up_to(tree)
    except (ValueError, TypeError):
        return False
    return True


def open_if_alone(params: PyTree) -> PyTree:
    """Parameters that are a single box, without it: nothing in a state would tell which arrays belong to it."""
    return unboxed(params) if is_box(params) else params


def drop_unfit_boxes(state: PyTree, params: PyTree) -> PyTree:
    """An optimiser state without the parameters' boxes around arrays of other shapes, or around nothing.

    Args:
      state: with subtrees like ``params``, as optax's transforms make them from these.
      params: tree of arrays in boxes or not, see `open_if_alone`.

    Example:
      >>> import jax.numpy as jnp, flax.linen as nn
      >>> params = {"w": nn.Partitioned(jnp.zeros((2, 3)), ("fsdp", None))}
      >>> row = {"w": params["w"].replace_boxed(jnp.zeros(2))}
      >>> drop_unfit_boxes((row, params), params)[0]["w"].shape, drop_unfit_boxes((row, params), params)[1] == params
      ((2,), True)
    """

    def one(x: Any, like: Any) -> Any:
        shapes, expected = (list(map(jnp.shape, jax.tree.leaves(tree))) for tree in (x, like))
        return x if not is_box(x) or (shapes and shapes == expected) else unboxed(x)

    return _map_like(one, state, params)


def restore_boxes(state: PyTree, params: PyTree) -> PyTree:
    """The inverse of `drop_unfit_boxes`: everything in the subtrees like ``params`` boxed as these."""

    def again(x: Any, like: Any) -> Any:
        return boxed(again(x, _content(like)), like) if is_box(like) else x

    return _map_like(lambda x, like: x if is_box(x) else again(x, like), state, params)


def _map_like(function: Callable[[Any, Any], Any], state: PyTree, params: PyTree) -> PyTree:
    likes = jax.tree.leaves(params, is_leaf=is_box)
    if not any(map(is_box, likes)):
        return state
    treedef: Any = jax.tree.structure(params, is_leaf=is_box)

    def each(x: Any) -> Any:
        if not is_like(x, treedef):
            return x
        return treedef.unflatten(
            [function(part, like) for part, like in zip(treedef.flatten_up_to(x), likes, strict=True)]
        )

    return jax.tree.map(each, state, is_leaf=lambda x: is_like(x, treedef))
