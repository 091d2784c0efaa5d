"""The optimiser that the authors of GEMS released, convention for convention."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gems_jax.argument_checks import check_function, check_number, check_whole, refuse
from gems_jax.extra_arguments import check_extras
from gems_jax.leaf_path import named_leaves
from gems_jax.linalg.matrix_dims import MatrixRule, MatrixSpec, matrix_specs
from gems_jax.linalg.orthonormal import matmul
from gems_jax.linalg.projection import projected_axis_first
from gems_jax.linalg.sizes import real_dtype
from gems_jax.linalg.subspace import canonical_signs
from gems_jax.masked_leaves import tell_leaves, warn_of_stacked_leaves
from gems_jax.null_space.space import NullSpace
from gems_jax.task_grads import check_task_axis, task_weights, weighted_sum
from gems_jax.transform.gates import Gate, Signals, fresh_state, heuristic
from gems_jax.transform.state import work_dtype
from gems_jax.types import PyTree
from gems_jax.whole_number import whole

Bases = Callable[[jax.Array], Mapping[str, tuple[jax.Array, jax.Array]]]


class Moments(NamedTuple):
    """Adam's first and second moments."""

    first: jax.Array
    second: jax.Array


class ReleasedKernel(NamedTuple):
    """State of one kernel.

    Attributes:
      shared_basis: ``[batch, p, r]``.
      task_basis: ``[T, batch, p, r_t]``.
      shared: moments ``[batch, r, q]``.
      task: moments ``[T, batch, r_t, q]``.
    """

    shared_basis: jax.Array
    task_basis: jax.Array
    shared: Moments
    task: Moments


class ReleasedState(NamedTuple):
    """State of `released`: steps taken, each leaf's state by path, the projectors, the gate's state, gates."""

    count: jax.Array  # type: ignore[assignment]
    leaves: dict[str, Any]
    projectors: dict[str, jax.Array]
    gate: Any
    gates: jax.Array


def released(
    learning_rate: optax.ScalarOrSchedule,
    *,
    num_tasks: int,
    rank: int = 128,
    gap: int = 200,
    scale: float = 1.0,
    weight_decay: float = 0.0,
    null_space: NullSpace | Mapping[str, Any] | None = None,
    matrix_dims: PyTree | MatrixRule | None = None,
    bases: Bases | None = None,
    signs: Literal["canonical", "lapack"] = "canonical",
    gate: Gate | None = None,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-6,
) -> optax.GradientTransformationExtraArgs:
    """The authors' released optimiser, for comparison; `gems_jax.gems` is the one to use.

    Per kernel (``in <= out``: bases on the input side, otherwise on the output side) and branch ``b`` (shared
    gradient, rank ``r``; each task's, rank ``max(1, r // 2)``), with ``t`` counted from 1:

    1. ``G <- G P`` with the projector ``P`` of the layer's *outputs*;
    2. at ``t = 1`` and where ``t % gap == 0``: ``U`` from the singular vectors of ``G``, capped at the smaller
       side but not at the null space; moments stay in the former coordinates;
    3. ``L = U^T G``; ``m <- b1 m + (1 - b1) L``, ``v <- b2 v + (1 - b2) L^2``, ``D_b = U m / (sqrt(v) + eps)``:
       eps is added to the uncorrected root;
    4. ``W <- W - lr_t sqrt(1 - b2^t) / (1 - b1^t) scale (D_s + sum_t g_t D_t)``;
    5. ``W <- W (1 - lr_t weight_decay)``, on the updated ``W``, every leaf.

    Other leaves: the same Adam on the merged gradient. Moments of an absent task decay. The projection comes
    before Adam, so updates do leave the null space (arXiv 2601.09496, code release).

    Args:
      learning_rate: number or schedule (of the count from 0).
      num_tasks: ``T``.
      rank: of the shared subspace; a whole number of columns, no fraction.
      gap: steps between refreshes.
      scale: of the subspace updates.
      weight_decay: see 5.
      null_space: `NullSpace` of side ``out``, or projectors ``[out, out]`` by kernel path.
      matrix_dims: as in `gems_jax.gems`.
      bases: ``count -> {path: (shared [(batch,) p, r], task [T, (batch,) p, r_t])}`` to use at every step
        instead of computing them; singular vectors have arbitrary signs, on which the result depends.
      signs: ``"canonical"`` (largest entry positive) or ``"lapack"``: as the decomposition returns them.
      gate: default ``gates.heuristic()``.
      b1, b2, eps: of Adam.

    Returns:
      A transform with the call of `gems_jax.gems`, learning rate and decay included. ``shared_grads`` gives
      the merged gradient; by default it is count-weighted.

    Raises:
      ValueError: a null space of the input side, arguments out of range, a leaf without its task axis.
      TypeError: an argument of another type, named.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = released(0.1, num_tasks=2, rank=2)
      >>> params = {"kernel": jnp.eye(4)}
      >>> updates, state = tx.update({"kernel": jnp.ones((2, 4, 4))}, tx.init(params), params)
      >>> updates["kernel"].shape, int(state.count)
      ((4, 4), 1)
    """
    rank = whole("rank", rank)
    check_number("learning_rate", learning_rate, schedule=True)
    for name, number in (("num_tasks", num_tasks), ("gap", gap)):
        check_whole(name, number)
    for name, value in (("scale", scale), ("weight_decay", weight_decay), ("b1", b1), ("b2", b2), ("eps", eps)):
        check_number(name, value)
    if gate is not None and not isinstance(gate, Gate):
        refuse("gate", gate, "a gate: gems_jax.gates.heuristic(), learned() or constant(weights), called")
    if null_space is not None and not isinstance(null_space, NullSpace | Mapping):
        refuse("null_space", null_space, "a NullSpace of side 'out', or projectors by kernel path")
    if bases is not None:
        check_function("bases", bases, "a function of the step that gives the bases by kernel path")
    if num_tasks < 1 or rank < 1 or gap < 1:
        raise ValueError(f"num_tasks, rank and gap are at least 1, got {num_tasks}, {rank}, {gap}")
    if signs not in ("canonical", "lapack"):
        raise ValueError(f"signs is {signs!r}; choose 'canonical' or 'lapack'")
    if isinstance(null_space, NullSpace) and null_space.side != "out":
        raise ValueError(
            "the released optimiser projects layer outputs: estimate the null space with side='out', "
            "or use gems_jax.gems, whose default side 'in' keeps the model's outputs on general text"
        )
    gate_fn = heuristic() if gate is None else gate

    def specs_of(params: PyTree) -> dict[str, MatrixSpec]:
        paths = [path for path, _ in named_leaves(params)]
        specs = matrix_specs(params, matrix_dims, null_space.roles if isinstance(null_space, NullSpace) else None)
        return {path: spec for path, spec in zip(paths, specs, strict=True) if spec is not None}

    def init_fn(params: PyTree) -> ReleasedState:
        tell_leaves(params)
        specs = specs_of(params)
        leaves: dict[str, Any] = {}
        for path, leaf in named_leaves(params):
            dtype = work_dtype(leaf.dtype)
            if path not in specs:
                leaves[path] = _zero_moments(leaf.shape, dtype)
                continue
            (p, q), batch = sorted(specs[path].matrix_shape), specs[path].batch
            r, r_t = min(rank, p), min(max(1, rank // 2), p)
            leaves[path] = ReleasedKernel(
                shared_basis=jnp.zeros((batch, p, r), dtype),
                task_basis=jnp.zeros((num_tasks, batch, p, r_t), dtype),
                shared=_zero_moments((batch, r, q), dtype),
                task=_zero_moments((num_tasks, batch, r_t, q), dtype),
            )
        return ReleasedState(
            count=jnp.zeros((), jnp.int32),
            leaves=leaves,
            projectors=_projectors(null_space, params),
            gate=fresh_state(gate_fn, num_tasks, real_dtype(leaf.dtype for leaf in jax.tree.leaves(params))),
            gates=jnp.full((num_tasks,), 1 / num_tasks, jnp.float32),
        )

    def adam(moments: Moments, gradient: jax.Array) -> tuple[jax.Array, Moments]:
        first = b1 * moments.first + (1 - b1) * gradient
        second = b2 * moments.second + (1 - b2) * gradient * gradient
        return first / (jnp.sqrt(second) + eps), Moments(first, second)

    def refreshed(old: jax.Array, gradient: jax.Array, due: jax.Array) -> jax.Array:
        def new(gradient: jax.Array) -> jax.Array:
            vectors = jnp.linalg.svd(gradient, full_matrices=False)[0][..., : old.shape[-1]]
            if signs == "lapack":
                return vectors
            flat = vectors.reshape(-1, *vectors.shape[-2:])
            return jax.vmap(canonical_signs)(flat).reshape(vectors.shape)

        return jax.lax.cond(due, new, lambda _: old, gradient)

    def branch(
        old: jax.Array, moments: Moments, gradient: jax.Array, due: jax.Array, given: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, Moments]:
        """``(D, U, moments)`` of one branch, leading axes ``[(T,) batch]``."""
        basis = refreshed(old, gradient, due) if given is None else given.astype(old.dtype).reshape(old.shape)
        low, moments = adam(moments, matmul(basis.mT, gradient))
        return matmul(basis, low), basis, moments

    def update_fn(
        updates: PyTree,
        state: ReleasedState,
        params: PyTree | None = None,
        *,
        task_losses: jax.Array | None = None,
        task_counts: jax.Array | None = None,
        shared_grads: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, ReleasedState]:
        check_extras(extra_args)
        if params is None:
            raise ValueError("released needs the parameters: call update(grads, state, params)")
        check_task_axis(updates, params, num_tasks)
        warn_of_stacked_leaves(updates, "released")
        specs = specs_of(params)
        weights = task_weights(task_counts, num_tasks)
        treedef: Any = jax.tree.structure(updates)
        wide = [g.astype(work_dtype(g.dtype)) for g in jax.tree.leaves(updates)]
        merged = [weighted_sum(g, weights) for g in wide] if shared_grads is None else jax.tree.leaves(shared_grads)
        squares = [jnp.sum(g**2, axis=tuple(range(1, g.ndim))) for g in wide if g.shape[0] == num_tasks]
        norms = jnp.sqrt(sum(squares, jnp.zeros((num_tasks,), jnp.float32)))
        ones = jnp.ones((num_tasks,), norms.dtype)
        signals = Signals(
            losses=ones if task_losses is None else task_losses,
            grad_norms=norms,
            counts=ones if task_counts is None else jnp.asarray(task_counts, norms.dtype),
            progress=jnp.zeros_like(ones),
        )
        gates, gate_state = gate_fn.update(signals, state.gate)
        t = state.count + 1
        due = (t == 1) | (t % gap == 0)
        rate = learning_rate(state.count) if callable(learning_rate) else learning_rate
        stored = {} if bases is None else bases(state.count)

        leaves: dict[str, Any] = {}
        steps: list[jax.Array] = []
        for (path, leaf), grad, shared in zip(named_leaves(params), wide, merged, strict=True):
            held = state.leaves[path]
            dtype = work_dtype(leaf.dtype)
            # 1 - b^t without the cancellation that costs float32 four digits in the first steps.
            missing1, missing2 = (-jnp.expm1(t.astype(dtype) * math.log(b)) for b in (b1, b2))
            size = jnp.asarray(rate, dtype) * jnp.sqrt(missing2) / missing1
            if path not in specs:
                direction, leaves[path] = adam(held, shared.astype(dtype))
            else:
                spec = specs[path]
                side = "in" if spec.matrix_shape[0] <= spec.matrix_shape[1] else "out"
                stacked = jnp.broadcast_to(grad, (num_tasks, *leaf.shape)).astype(dtype)
                task_grad, shared_grad = spec.to_matrices(stacked, 1), spec.to_matrices(shared.astype(dtype))
                if path in state.projectors:
                    projector = state.projectors[path].astype(dtype)
                    task_grad, shared_grad = matmul(task_grad, projector), matmul(shared_grad, projector)
                given = stored.get(path, (None, None))
                total, shared_basis, shared_moments = branch(
                    held.shared_basis, held.shared, projected_axis_first(shared_grad, side), due, given[0]
                )
                tasks, task_basis, task_moments = branch(
                    held.task_basis, held.task, projected_axis_first(task_grad, side), due, given[1]
                )
                leaves[path] = ReleasedKernel(shared_basis, task_basis, shared_moments, task_moments)
                total += jnp.sum(gates.astype(dtype)[:, None, None, None] * tasks, axis=0)
                direction = scale * spec.from_matrices(projected_axis_first(total, side))
            step = -size * direction
            # Decay acts on the already updated weights: W + dW = (W + step) (1 - lr wd).
            decay = jnp.asarray(rate, dtype) * weight_decay
            steps.append(step - decay * (leaf.astype(dtype) + step))
        count, gates = optax.safe_increment(state.count), gates.astype(jnp.float32)
        return treedef.unflatten(steps), ReleasedState(count, leaves, state.projectors, gate_state, gates)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _zero_moments(shape: tuple[int, ...], dtype: Any) -> Moments:
    return Moments(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


def _projectors(null_space: NullSpace | Mapping[str, Any] | None, params: PyTree) -> dict[str, jax.Array]:
    """``P = N: [out, out]`` by kernel path."""
    if null_space is None:
        return {}
    if not isinstance(null_space, NullSpace):
        return {path: jnp.asarray(p) for path, p in null_space.items()}
    dtypes = {path: work_dtype(leaf.dtype) for path, leaf in named_leaves(params)}
    projectors = {}
    # At once, in a compiled `init` too: there the compiler would work out these products of constants, for seconds.
    with jax.ensure_compile_time_eval():
        for path in null_space.inputs:
            factor = null_space.factor(path)
            basis = jnp.asarray(factor.basis, dtypes.get(path, jnp.float32))
            inside = matmul(basis, basis.mT)
            projectors[path] = inside if factor.complement else jnp.eye(factor.dim, dtype=inside.dtype) - inside
    return projectors
