"""Which leaves get no subspaces or no protection, and why."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from gems_jax.linalg.matrix_dims import is_guess, is_named_like_no_kernel
from gems_jax.null_space.space import NullSpace

_NO_ROLE = "three or more axes and no matrix role"
_NO_MATRIX = "fewer than two axes, no matrix"
_PROJECTED = "matrix_dims gives it no role; its fallback step is projected"


def reasons(
    kernels: Collection[str],
    others: Mapping[str, Sequence[int]],
    null_space: NullSpace | None,
    rule: Any,
    projected: Collection[str] = (),
) -> dict[str, str]:
    """Why leaves have no subspaces, or are not in the null space that other kernels are in.

    Args:
      kernels: paths of the leaves with subspaces.
      others: shapes of those with neither subspaces nor protection, by path.
      null_space: of the other kernels.
      rule: ``matrix_dims``.
      projected: paths of those that have protection alone.

    Example:
      >>> reasons([], {"shared/embedding": (9, 4), "q/kernel": (4, 2, 2), "q/bias": (4,)}, None, None)
      ... # doctest: +NORMALIZE_WHITESPACE
      {'shared/embedding': 'no kernel by its name', 'q/kernel': 'three or more axes and no matrix role',
       'q/bias': 'fewer than two axes, no matrix'}
    """
    known = null_space.left_out if null_space else {}
    why = {}
    for path, shape in others.items():
        if path in known:
            why[path] = known[path]
        elif len(shape) < 2:
            why[path] = _NO_MATRIX
        else:
            by_rule = "no kernel by its name" if is_named_like_no_kernel(path) else _NO_ROLE
            why[path] = by_rule if is_guess(rule) else "matrix_dims gives it no role"
    why |= dict.fromkeys(sorted(projected), _PROJECTED)
    if null_space is not None:
        outside = sorted(set(kernels) - set(null_space.inputs))
        why |= {path: f"not in the null space: {known.get(path, 'it was not seen in the pass')}" for path in outside}
        inside = sorted(set(kernels) & set(null_space.inputs) & set(known))
        why |= {path: f"protected in some of its uses: {known[path]}" for path in inside}
    return why


def unprotected(others: Mapping[str, Sequence[int]], null_space: NullSpace | None, rule: Any) -> tuple[str, ...]:
    """Leaves with neither subspaces nor protection although they are multiplied with activations, as far as is known.

    The pass of a null space shows them; without one, leaves of three or more axes that are named ``kernel`` are taken
    for such. A leaf that the user's own rule leaves out is his choice, tables and heads over a vocabulary are ours.

    Example:
      >>> unprotected({"shared/embedding": (9, 4), "q/kernel": (4, 2, 2)}, None, None)
      ('q/kernel',)
    """
    if not is_guess(rule):
        return ()
    if null_space is not None and null_space.roles:
        return tuple(path for path in others if path in null_space.left_out and path not in null_space.roles)
    named = (path for path, shape in others.items() if len(shape) > 2 and path.endswith("kernel"))
    return tuple(path for path in named if not is_named_like_no_kernel(path))
