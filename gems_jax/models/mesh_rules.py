"""How activations lie on a mesh: rows of a batch over the devices that share them."""

import math

import jax
from jax.sharding import PartitionSpec

from gems_jax.linalg.stacks import check_auto

# Mesh axes over which the rows of a batch are split; all others split kernels, or tasks.
ROW_AXES = ("data", "fsdp")


def keep_rows(x: jax.Array) -> jax.Array:
    """Keeps activations split by rows, and whole in all else, where there is a mesh to split them over.

    Left to itself the compiler takes over the layout of a table whose columns are split (``fsdp``): activations are
    then split by features, and every product of every layer sends them around, where the kernels should travel.
    Said once, at the embedding, it holds for all layers behind it.

    Args:
      x: ``[B, ...]``, inside ``jax.jit`` under ``jax.set_mesh`` (or ``jax.sharding.use_abstract_mesh``); also under
        ``jax.vmap``, whose axis stays as it is.

    Returns:
      ``x``; as it came without a mesh, on one without the axes ``data`` and ``fsdp``, and where they do not divide B.

    Raises:
      ValueError: a mesh with axes of type ``Explicit``.

    Example:
      >>> import jax.numpy as jnp
      >>> keep_rows(jnp.ones((2, 3))).shape
      (2, 3)
    """
    mesh = jax.sharding.get_abstract_mesh()
    check_auto(mesh)
    axes = tuple(name for name in ROW_AXES if name in mesh.axis_names)
    if not axes or x.shape[0] % math.prod(mesh.shape[name] for name in axes):
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(axes))
