"""Updates kept in a null space: the transform that projects them, its factors and what leaks."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gems_jax.argument_checks import check_matrix_rule, check_whole
from gems_jax.boxes import map_with_path
from gems_jax.leaf_path import leaf_path, named_leaves
from gems_jax.linalg.matrix_dims import MatrixDims, MatrixRule, MatrixSpec, check_role, is_guess, resolve
from gems_jax.linalg.orthonormal import matmul
from gems_jax.linalg.projection import Projector, project_stack, project_update, projected_axis_first
from gems_jax.linalg.sizes import real_dtype
from gems_jax.null_space.few_bits import warn_of_few_bits
from gems_jax.null_space.space import NullSpace, check_null_space
from gems_jax.types import PyTree


class ConstrainToNullSpaceState(NamedTuple):
    """The factors, by input: state, so that they are arguments of a compiled step and can be sharded."""

    factors: dict[str, jax.Array]


def constrain_to_null_space(
    null_space: NullSpace, matrix_dims: MatrixRule | None = None
) -> optax.GradientTransformationExtraArgs:
    """Projects every update into the null space: ``dW <- N dW``, whatever produced it.

    On side ``"out"`` ``dW <- dW N``, on both ``dW <- N_in dW N_out``. Chainable behind any optimiser (before or after
    its learning rate): ``|K^T dW| <= 1e-5 |dW|`` for updates in float32, which is what it emits for constrained kernels
    whatever the parameter dtype.

    Args:
      null_space: see `NullSpace`.
      matrix_dims: callable ``(path, leaf) -> MatrixDims | None`` for kernels whose role the null space does not know
        and whose matrix is not their last two axes.

    Returns:
      An optax transform; its state holds the factors.

    Raises:
      ValueError: in ``init``, where no parameter is constrained, a factor does not fit its kernel, or ``matrix_dims``
        contradicts the null space's roles.

    Example:
      >>> import jax.numpy as jnp, numpy as np, optax
      >>> ns = NullSpace.from_moments({"kernel": np.diag([9.0, 1.0])}, rank=1)
      >>> params = {"kernel": jnp.zeros((2, 3))}
      >>> tx = optax.chain(optax.sgd(1.0), constrain_to_null_space(ns))
      >>> tx.update({"kernel": jnp.ones((2, 3))}, tx.init(params))[0]["kernel"].tolist()
      [[0.0, 0.0, 0.0], [-1.0, -1.0, -1.0]]
    """
    _check_arguments(null_space, matrix_dims)

    def spec_of(path: str, leaf: Any) -> MatrixSpec:
        return constrained_spec(path, leaf, null_space, matrix_dims)

    def init_fn(params: PyTree) -> ConstrainToNullSpaceState:
        check_paths(params, null_space)
        for name, leaf in named_leaves(params):
            if name in null_space.inputs:
                spec_of(name, leaf)
        warn_of_few_bits(params, null_space)
        return ConstrainToNullSpaceState(factor_arrays(null_space, params))

    def update_fn(
        updates: PyTree, state: ConstrainToNullSpaceState, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, ConstrainToNullSpaceState]:
        del params, extra_args

        def constrain(path: tuple[Any, ...], update: jax.Array) -> jax.Array:
            name = leaf_path(path)
            if name not in null_space.inputs:
                return update
            spec = spec_of(name, update)
            for side, source in null_space.sides_of(name).items():
                projector = null_space.factors[source].projector(state.factors[source])
                update = project_update(update, spec, projector, side)
            return update

        return map_with_path(constrain, updates), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def null_space_leak(
    updates: PyTree, null_space: NullSpace, matrix_dims: MatrixRule | None = None, probes: int | None = None
) -> dict[str, jax.Array]:
    """How much of each update lies in protected directions: ``|K^T dW| / |dW|``, 0 where ``dW = 0``.

    On side ``"out"`` ``|dW K| / |dW|``, on both the larger of the two.

    With ``probes`` an estimate, ``|K^T dW g| / |dW g|`` for that many fixed Gaussian vectors ``g``: a hundredth of
    the work, and exact where every direction that the update acts on leaks as much as the others.

    Args:
      updates: tree of ``[*shape]`` updates, or differences of parameters.
      null_space: see `NullSpace`.
      matrix_dims: as for `constrain_to_null_space`.
      probes: number of vectors, or ``None``: no estimate.

    Returns:
      Float32 scalar by path of constrained kernel; the largest of a stack.

    Raises:
      ValueError: an update that does not fit its factor, or ``matrix_dims`` contradicts the null space's roles.

    Example:
      >>> import jax.numpy as jnp
      >>> ns = NullSpace.from_moments({"kernel": jnp.diag(jnp.array([3.0, 0.0, 0.0]))}, rank=1)
      >>> {name: round(float(leak), 3) for name, leak in null_space_leak({"kernel": jnp.ones((3, 2))}, ns).items()}
      {'kernel': 0.577}
    """
    _check_arguments(null_space, matrix_dims)
    if probes is not None:
        check_whole("probes", probes, 1, "a number of vectors")
    leaks = {}
    for name, update in named_leaves(updates):
        if name not in null_space.inputs:
            continue
        update = jnp.asarray(update)
        spec = constrained_spec(name, update, null_space, matrix_dims)
        update = update.astype(jnp.promote_types(update.dtype, jnp.float32))
        matrices = spec.to_matrices(update)
        of_sides = [
            _leak(projected_axis_first(matrices, side), null_space.factors[source].projector(), probes)
            for side, source in null_space.sides_of(name).items()
        ]
        leaks[name] = functools.reduce(jnp.maximum, of_sides)
    return leaks


def _check_arguments(null_space: Any, matrix_dims: Any) -> None:
    check_null_space(null_space)
    check_matrix_rule(matrix_dims)


def _leak(matrices: jax.Array, projector: Projector, probes: int | None) -> jax.Array:
    """``|K^T dW| / |dW|`` of the worst of a stack ``[batch, d, n]``."""
    if probes is not None:
        vectors = jax.random.normal(jax.random.key(0), (matrices.shape[-1], probes), matrices.dtype)
        matrices = matmul(matrices, vectors)
    protected = matrices - project_stack(matrices, projector)
    size = jnp.linalg.norm(matrices, axis=(-2, -1))
    return jnp.max(jnp.linalg.norm(protected, axis=(-2, -1)) / jnp.where(size > 0, size, 1))


def check_factor(path: str, spec: MatrixSpec, null_space: NullSpace) -> MatrixSpec:
    """Checks that a kernel's factors have its dimensions and its stack, and returns the kernel's spec.

    Raises:
      ValueError: one does not.
    """
    for side, source in null_space.sides_of(path).items():
        factor = null_space.factors[source]
        size = spec.matrix_shape[0 if side == "in" else 1]
        if factor.dim != size or factor.basis.shape[:-2] not in ((), spec.batch_shape):
            raise ValueError(
                f"the null space of {path!r} has shape {list(factor.basis.shape)}, the kernel {list(spec.shape)} needs "
                f"[{', '.join(map(str, (*spec.batch_shape, size)))}, directions] on side {side!r}: "
                "it was estimated from another model"
            )
    return spec


def constrained_spec(path: str, leaf: Any, null_space: NullSpace, rule: MatrixRule | None = None) -> MatrixSpec:
    """Matrix role of a constrained leaf, checked against its factor.

    The role is the null space's; where it has none, that of the rule, else the leaf's last two axes.

    Raises:
      ValueError: no matrix, a rule that contradicts the null space, or a factor that does not fit.
    """
    shape = leaf.shape
    if len(shape) < 2:
        raise ValueError(f"the null space constrains {path!r}, which is no matrix: shape {list(shape)}")
    role, given = null_space.roles.get(path), rule(path, leaf) if rule is not None else None
    if role is not None and given is not None and not is_guess(rule):
        check_role(path, shape, given, role)
    return check_factor(path, resolve(role or given or MatrixDims(), shape, path), null_space)


def factor_arrays(null_space: NullSpace, params: PyTree) -> dict[str, jax.Array]:
    """The factors' arrays by input name, as they lie in optimiser states: copies, since states are donated.

    In float32, or float64 where a kernel of that input is.
    """
    dtypes: dict[str, Any] = {}
    for path, leaf in named_leaves(params):
        for name in null_space.sides_of(path).values() if path in null_space.inputs else ():
            dtypes[name] = real_dtype([dtypes.get(name, jnp.float32), leaf.dtype])
    factors = null_space.factors.items()
    return {name: jnp.array(f.basis, dtypes.get(name, jnp.float32), copy=True) for name, f in factors}


def check_paths(params: PyTree, null_space: NullSpace) -> None:
    """Raises ``ValueError`` where a null space constrains none of the parameters."""
    paths = [path for path, _ in named_leaves(params)]
    if paths and not set(paths) & set(null_space.inputs):
        raise ValueError(
            f"the null space constrains none of the {len(paths)} parameters: it knows "
            f"{sorted(null_space.inputs)[:3]}..., the parameters are {paths[:3]}..."
        )
