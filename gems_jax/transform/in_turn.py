"""Groups of kernels one after the other, where the compiler would take them all at once."""

import jax
import jax.numpy as jnp

from gems_jax.linalg.stacks import mesh_of_devices
from gems_jax.types import PyTree


def once(there: jax.Array, x: PyTree, other: PyTree) -> PyTree:
    """``x``, not before ``there`` is computed.

    The compiler of CPUs begins with whatever has its operands and leaves barriers out: updates of all kernels lie in
    memory together, and so do copies of all moments, which are written where those lie that the updates are made from.
    A choice whose outcome it does not foresee has to wait. On a mesh, where all devices would ask one for it, ``x`` is
    returned as it is.

    Args:
      there: any number or array.
      x: tree of arrays or numbers.
      other: anything of these shapes that is there before; never taken.

    Example:
      >>> float(once(jnp.ones(3), 2.0, 0.0))
      2.0
    """
    if mesh_of_devices() is not None or there.size == 0:
        return x
    entry = there.ravel()[0].real
    never = jnp.isnan(entry) & (entry > 0)
    return jax.tree.map(lambda x, other: jnp.where(never, other, x), x, other)
