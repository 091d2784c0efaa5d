"""Which leaves of a model are kernels, and in which role: what its program shows, names where that shows nothing."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from gems_jax.leaf_path import named_leaves
from gems_jax.linalg.matrix_dims import (
    MatrixDims,
    MatrixRule,
    MatrixSpec,
    is_guess,
    is_named_like_vocabulary_head,
    resolve,
    stacked_matrix_dims,
)
from gems_jax.null_space.moment_pass import Model, kernel_specs
from gems_jax.null_space.tracing.kernel_inputs import kernel_inputs

_BY_NAME = "a head over the vocabulary by name"


class Observed(NamedTuple):
    """Roles of the leaves of two or more axes, by path.

    Attributes:
      specs: of the kernels, resolved.
      roles: the same as dimension numbers, and ``None`` for what is no kernel.
      left_out: why a leaf that a program looks up, or multiplies with activations, is no kernel.
      remarks: why a leaf has no role although it looks like a kernel, or meets activations unfollowed.
    """

    specs: dict[str, MatrixSpec]
    roles: dict[str, MatrixDims | None]
    left_out: dict[str, str]
    remarks: dict[str, str]


def observe_roles(model: Model, batch: Mapping[str, Any], rule: MatrixRule | None = None) -> Observed:
    """The roles of a model's leaves as its forward pass uses them; nothing is computed.

    A leaf that is multiplied with activations is a kernel, whatever its name, unless its rows are looked up, too (by
    index, or by ones and zeros), or it is named as a head over the vocabulary. A rule that is no guess decides alone.

    Args:
      model: see `gems_jax.null_space.moment_pass.as_function`.
      batch: that it is called with.
      rule: ``(path, leaf) -> MatrixDims | None``; default `stacked_matrix_dims`, a guess (see `is_guess`).

    Returns:
      `Observed`.

    Raises:
      ValueError: a rule that is no guess and names no kernel.

    Example:
      >>> import jax.numpy as jnp
      >>> from gems_jax.null_space.moment_pass import as_function
      >>> model = as_function(lambda params, x: x @ params["w"].T, {"w": jnp.ones((3, 2))})
      >>> observe_roles(model, {"x": jnp.ones((5, 2))}).roles
      {'w': MatrixDims(in_axes=(1,), out_axes=(0,))}
    """
    leaves = dict(named_leaves(model.params))
    candidates = {path: leaf for path, leaf in leaves.items() if len(leaf.shape) > 1}
    seen = kernel_inputs(model.apply, model.params, model.called(batch), dict.fromkeys(candidates))
    if not is_guess(rule):
        given = {path: spec for path, spec in kernel_specs(model.params, rule).items() if spec is not None}
        assert callable(rule)
        left_out = {path: "matrix_dims gives it no role" for path in seen.roles if path not in given}
        return Observed(given, {path: rule(path, leaves[path]) for path in given}, left_out, {})
    observed = Observed({}, {}, {}, {})
    for path, leaf in candidates.items():
        guess, role = (rule or stacked_matrix_dims)(path, leaf), seen.roles.get(path)
        if path in seen.tables or (role is not None and is_named_like_vocabulary_head(path)):
            observed.roles[path] = None
            looked_up = path in seen.tables
            observed.left_out[path] = "its rows are looked up: a table" if looked_up else _BY_NAME
        elif role is not None:
            _add_role(observed, path, leaf.shape, guess, role)
        elif path in seen.missed or guess is not None or path.endswith("kernel"):
            observed.remarks[path] = seen.remarks[path]
    return observed


def _add_role(
    observed: Observed, path: str, shape: tuple[int, ...], guess: MatrixDims | None, role: MatrixDims
) -> None:
    if guess is not None and _agrees(guess, role, shape):
        role = guess
    if not role.in_axes or not role.out_axes:
        observed.roles[path] = None
        observed.remarks[path] = "it is multiplied with activations as a vector, not as a matrix"
        return
    observed.roles[path], observed.specs[path] = role, resolve(role, shape, path)


def _agrees(guess: MatrixDims, role: MatrixDims, shape: tuple[int, ...]) -> bool:
    """Whether a guess has the observed inputs, and no outputs that are not observed."""

    def wide(axes: int | tuple[int, ...]) -> set[int]:
        numbers = {a % len(shape) for a in ((axes,) if isinstance(axes, int) else axes)}
        return {a for a in numbers if shape[a] > 1}

    return wide(guess.in_axes) == wide(role.in_axes) and wide(guess.out_axes) <= wide(role.out_axes)
