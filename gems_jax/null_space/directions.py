"""Principal directions of second moments, and the rules that say how many are protected."""

import math
import numbers
import os
import warnings
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gems_jax.argument_checks import check_number, check_whole
from gems_jax.linalg.projection import Projector
from gems_jax.whole_number import is_whole


@dataclass(frozen=True)
class Factor:
    """The directions of one input that general text uses, as the thinner of two orthonormal bases.

    Attributes:
      basis: ``[*batch, d, c]`` orthonormal columns, zero columns as padding within a stack.
      complement: false where ``basis`` holds the protected directions ``K``, true where it holds their
        orthogonal complement ``Q``, the null space.
      kept: ``[*batch]`` number of protected directions.
      residual: ``[*batch]`` share of the second moment's trace outside them.
    """

    basis: np.ndarray | jax.Array
    complement: bool
    kept: np.ndarray
    residual: np.ndarray

    @property
    def dim(self) -> int:
        return self.basis.shape[-2]

    def projector(self, basis: jax.Array | None = None) -> Projector:
        return Projector(jnp.asarray(self.basis if basis is None else basis), self.complement)


@dataclass(frozen=True)
class Rule:
    """How many directions are protected: exactly one of the first three, within the bounds of the others.

    Args:
      energy: fewest directions that hold at least this share of the trace.
      rank: this many directions (1: one); a float in (0, 1) is a share of the dimension.
      threshold: eigenvalues at least this large; where none is smaller, the smallest ``max(1, d // 20)``
        directions are the null space (the released rule, 2e-2).
      max_directions: the leading ones of these; what is given up shows in the residual.
      min_share: with ``energy``, at least this share of the dimension: a few outlier directions can hold almost all
        of the trace of a language model's activations.

    Raises:
      ValueError: none of the first three or several, a value out of range, or ``min_share`` without ``energy``.

    Example:
      >>> Rule(rank=0.25).kept(np.array([3.0, 1.0, 0.5, 0.1]), 4.6, 4)
      1
    """

    energy: float | None = None
    rank: int | float | None = None
    threshold: float | None = None
    max_directions: int | None = None
    min_share: float | None = None

    def __post_init__(self) -> None:
        if self.rank is not None and (isinstance(self.rank, bool) or not isinstance(self.rank, numbers.Real)):
            raise ValueError(f"rank={self.rank!r}: give an int (directions) or a float (of the input's dimension)")
        for name in ("energy", "threshold", "min_share"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name))
        if self.max_directions is not None:
            check_whole("max_directions", self.max_directions, 1, "a number of directions")
        given = {k: v for k, v in self.given().items() if k not in ("max_directions", "min_share")}
        if len(given) != 1:
            raise ValueError(f"give exactly one of energy, rank and threshold, got {given or 'none'}")
        if self.energy is not None and not 0 <= self.energy <= 1:
            raise ValueError(f"energy is a share of the trace between 0 and 1, got {self.energy}")
        if self.rank is not None and self.rank < 0:
            raise ValueError(f"rank is a number of directions, at least 0, got {self.rank}")
        if self.rank is not None and self.is_share and not 0 < self.rank < 1:
            raise ValueError(
                f"rank={self.rank}: a float is a share of the input's dimension, in (0, 1); 1, an int, is one direction"
            )
        if self.min_share is not None and (self.energy is None or not 0 < self.min_share < 1):
            raise ValueError(f"min_share is a share of the dimension in (0, 1) beside energy, got {self.given()}")

    @property
    def is_share(self) -> bool:
        """Whether ``rank`` is a share of the dimension."""
        return self.rank is not None and not is_whole(self.rank)

    def given(self) -> dict[str, float]:
        """The fields that are not ``None``, as numbers."""
        return {name: float(value) for name, value in vars(self).items() if value is not None}

    def kept(self, values: np.ndarray, trace: float, d: int) -> int:
        """How many of the leading eigenvalues, in falling order, of a matrix of dimension ``d``."""
        if trace <= 0:
            return 0  # general text does not use this input: its eigenvectors are arbitrary
        if self.energy is not None:
            # Counting what is still missing before each direction; rounding of the sum never adds one.
            before = np.concatenate([[0.0], np.cumsum(values)[:-1]])
            kept = int(np.sum(self.energy * trace * (1 - 1e-12) > before))
            kept = max(kept, round((self.min_share or 0) * d))
        elif self.rank is not None:
            kept = round(float(self.rank) * d) if self.is_share else min(int(self.rank), d)
        else:
            kept = int(np.sum(values >= self.threshold))
            kept = d - max(1, d // 20) if kept == d else kept
        return kept if self.max_directions is None else min(kept, self.max_directions)


class Directions(NamedTuple):
    """Protected directions of one matrix: the thinner basis ``[d, c]``, whether it is that of the complement."""

    basis: np.ndarray
    complement: bool
    kept: int
    residual: float


def principal_directions(path: str, matrix: np.ndarray, rule: Rule, dtype: Any = None) -> Directions:
    """Principal directions of one second moment, by ``eigh`` in float64.

    Args:
      path: of the kernel, for errors.
      matrix: ``[d, d]``.
      rule: how many. Where ``max_directions`` is at most half of ``d``, no others are computed.
      dtype: of the basis; by default float32, or float64 where jax has it (``jax_enable_x64``).

    Raises:
      ValueError: the matrix is not finite.

    Example:
      >>> directions = principal_directions("w", np.diag([3.0, 1.0, 0.0]), Rule(energy=0.7))
      >>> directions.kept, directions.residual, np.abs(directions.basis).ravel().tolist()
      (1, 0.25, [1.0, 0.0, 0.0])
    """
    if not np.all(np.isfinite(matrix)):
        raise ValueError(
            f"moment of {path!r} is not finite: nan or inf in the general text's arrays or in the weights, or overflow "
            "in the model's activations"
        )
    matrix, d = np.asarray(matrix, np.float64), matrix.shape[-1]
    most = rule.max_directions
    if most is not None and 2 * most <= d:
        import scipy.linalg  # comes with jax

        values, vectors = scipy.linalg.eigh(matrix, subset_by_index=(d - most, d - 1))
        trace = float(np.trace(matrix))
        values = np.maximum(values, 0)
    else:
        values, vectors = np.linalg.eigh(matrix)
        values = np.maximum(values, 0)
        trace = float(values.sum())
    values, vectors = values[::-1], vectors[:, ::-1]
    kept = rule.kept(values, trace, d)
    complement = d - kept < kept
    basis = vectors[:, kept:] if complement else vectors[:, :kept]
    inside = float(np.cumsum(values)[kept - 1]) if kept else 0.0
    basis = basis.astype(jax.dtypes.canonicalize_dtype(np.float64) if dtype is None else dtype)
    return Directions(basis, complement, kept, 1 - inside / trace if trace > 0 else 1.0)


def directions_of(path: str, matrices: Iterable[np.ndarray], d: int, rule: Rule) -> list[Directions]:
    """Principal directions of a stack's matrices, of several at once where LAPACK has one thread.

    NumPy lets go of the interpreter while LAPACK works, so that threads of Python keep all cores busy: with one thread
    each the bits are those of one matrix after the other.

    Args:
      path: of the kernel, for errors.
      matrices: ``[d, d]`` each, taken as threads become free, so that few are held at a time.
      d: their dimension.
      rule: how many.

    Raises:
      ValueError: a matrix is not finite.
    """
    at_once = _at_once(d)
    if at_once == 1:
        return [principal_directions(path, matrix, rule) for matrix in matrices]
    # Of this thread: whether jax has float64 may be a matter of a block that others are not in.
    dtype = jax.dtypes.canonicalize_dtype(np.float64)
    found: list[Directions] = []
    waiting: deque[Future[Directions]] = deque()
    with ThreadPoolExecutor(at_once) as pool:
        for matrix in matrices:
            if len(waiting) == at_once:
                found.append(waiting.popleft().result())
            waiting.append(pool.submit(principal_directions, path, matrix, rule, dtype))
        return found + [one.result() for one in waiting]


def _at_once(d: int) -> int:
    """How many matrices are decomposed at a time: with LAPACK's threads one, else one on each core, if the matrix, its
    vectors and LAPACK's work for all fit into half of the machine's memory."""
    if os.environ.get("OPENBLAS_NUM_THREADS") != "1" or not hasattr(os, "sched_getaffinity"):
        return 1
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min(len(os.sched_getaffinity(0)), memory // 2 // (5 * 8 * d * d + 1)))


def stack_directions(directions: Sequence[Directions], stack: Sequence[int]) -> Factor:
    """The factor of a stack of matrices: one choice of basis for all, zero columns as padding.

    Example:
      >>> few, many = (principal_directions("w", np.diag([3.0, 2.0, 1.0, 0.0]), Rule(rank=k)) for k in (1, 4))
      >>> factor = stack_directions([few, many], (2,))
      >>> factor.complement, factor.basis.shape, factor.kept.tolist()
      (True, (2, 4, 3), [1, 4])
    """
    d = directions[0].basis.shape[0]
    kept = np.array([one.kept for one in directions])
    complement = bool((d - kept).max() < kept.max())
    width = int((d - kept).max() if complement else kept.max())
    basis = np.zeros((len(directions), d, width), directions[0].basis.dtype)
    for columns, one in zip(basis, directions, strict=True):
        chosen = one.basis if one.complement == complement else _orthogonal_complement(one.basis)
        columns[:, : chosen.shape[1]] = chosen
    return Factor(
        basis.reshape(*stack, d, width),
        complement,
        kept.reshape(stack).astype(np.int32),
        np.array([one.residual for one in directions]).reshape(stack),
    )


def _orthogonal_complement(basis: np.ndarray) -> np.ndarray:
    d, columns = basis.shape
    if columns == 0:
        return np.eye(d, dtype=basis.dtype)
    return np.linalg.qr(basis.astype(np.float64), mode="complete")[0][:, columns:].astype(basis.dtype)


def factor_of(path: str, moments: np.ndarray | jax.Array, rule: Rule) -> Factor:
    """The factor of a stack of second moments ``[*batch, d, d]``.

    Raises:
      ValueError: no stack of square matrices, or not finite.
    """
    if moments.ndim < 2 or moments.shape[-1] != moments.shape[-2]:
        raise ValueError(f"moment of {path!r} has shape {list(moments.shape)}, expected [..., d, d]")
    stack, d = moments.shape[:-2], moments.shape[-1]
    flat = moments.reshape(math.prod(stack), d, d)
    return stack_directions(directions_of(path, (np.asarray(m, np.float64) for m in flat), d, rule), stack)


def warn_if_little_is_kept(factors: Mapping[str, Factor], energy: float | None) -> None:
    """Warns where most inputs keep next to nothing: they are zeros, or a few outlier directions hold the trace."""
    thin = [f for f in factors.values() if energy and np.mean(f.kept) * 100 <= f.dim]
    # By energy a direction is protected wherever there is any.
    zeros = [name for name, f in factors.items() if energy and not np.any(f.kept)]
    if zeros and len(zeros) * 2 > len(factors):
        warnings.warn(
            f"{len(zeros)} of {len(factors)} inputs are zero for all of general text ({zeros[0]!r}, ...), so nothing "
            "is protected there: is it general text as the model takes it?",
            stacklevel=3,
        )
        return
    if len(thin) * 2 > len(factors):
        warnings.warn(
            f"{len(thin)} of {len(factors)} inputs keep next to nothing of general text (a few outlier "
            f"directions hold {energy:.0%} of the trace); raise energy or use rank",
            stacklevel=3,
        )
