"""A method's training step in JAX: compiled, counted, and run step after step."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.train_step.problem import REFRESH_EVERY, Batch, Problem
from gems_jax.training.estimate.abstract import device_bytes
from gems_jax.training.optimiser.factors import held_factors
from planning.costs import Costs, branches_of, costs_of
from planning.hlo import Instruction

# Runs of loops whose trip count is data: a warm refresh by subspace iteration takes two passes; of projected gradients
# two passes of the model, both counted as if they made new bases.
DATA_TRIPS = 2


class JaxMethod(NamedTuple):
    """A method.

    Attributes:
      start: ``(kernels, frozen) -> (trained, state, fixed)``: what the steps change, the optimiser's state, and what
        stays.
      step: ``(trained, state, fixed, batch) -> (trained, state, losses)``.
      joint: whether the batch is ``[T * B, ...]``, or ``[T, B, ...]``.
      refreshes: whether bases are made anew every `REFRESH_EVERY` steps.
    """

    start: Callable[..., tuple[Any, Any, Any]]
    step: Callable[..., tuple[Any, Any, Any]]
    joint: bool
    refreshes: bool

    def batch(self, problem: Problem, rows: int | None = None) -> Batch:
        return problem.joint_batch(rows) if self.joint else problem.task_batch(rows)


def taken(refresh: bool) -> Callable[[Instruction], int | None]:
    """The branches of a step: blocks are well conditioned and decompositions finite, all else asks for a refresh."""

    def branch(x: Instruction) -> int:
        if Path(x.source).name in ("orthonormal.py", "subspace.py", "step_passes.py"):
            return 1
        # New bases of projected gradients come from a sweep: the third of four ways.
        return int(refresh) * (2 if len(branches_of(x)) > 2 else 1)

    return branch


def counted(text: str, refresh: bool) -> Costs:
    """Costs of a compiled step, a plain one or one that makes new bases."""
    return costs_of(text, taken(refresh), DATA_TRIPS if refresh else 1)


class JaxRun:
    """A method's compiled step, its memory and costs; `begin` makes the arrays that `step` works on."""

    def __init__(self, method: JaxMethod, problem: Problem):
        self._method, self._problem = method, problem
        self.refreshes = method.refreshes
        start = jax.jit(method.start, donate_argnums=(0, 1))
        kernels, frozen = jax.eval_shape(problem.parameters)
        self._batch = method.batch(problem)
        arguments = (*jax.eval_shape(start, kernels, frozen), self._batch)
        since = time.perf_counter()
        self._compiled: Any = jax.jit(method.step, donate_argnums=(0, 1)).lower(*arguments).compile()
        self.compile_seconds = time.perf_counter() - since
        self._start = start.lower(kernels, frozen).compile()

    def begin(self) -> None:
        self._trained, self._state, self._fixed = self._start(*self._problem.parameters())
        self._batch = jax.tree.map(jnp.asarray, self._batch)

    def step(self) -> np.ndarray:
        """One update; the loss, or the tasks' losses."""
        moved = self._compiled(self._trained, self._state, self._fixed, self._batch)
        self._trained, self._state, losses = jax.block_until_ready(moved)
        return np.asarray(losses)

    def make_refresh_due(self) -> None:
        """Turns all counters to where the next step makes bases anew, warm: from those in force."""
        self._state = jax.tree_util.tree_map_with_path(
            lambda path, x: jnp.full_like(x, REFRESH_EVERY) if getattr(path[-1], "name", "") == "count" else x,
            self._state,
        )

    def state_bytes(self) -> dict[str, int]:
        factors = device_bytes(dict(held_factors(self._state)))
        return {"optimiser": device_bytes(self._state) - factors, "null_space": factors}

    def compiled_bytes(self) -> int:
        """Arguments, temporaries and those outputs that do not take an argument's place."""
        m = self._compiled.memory_analysis()
        return m.argument_size_in_bytes + m.temp_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes

    def flops(self) -> float:
        """Of the products of a plain step."""
        return self.costs(refresh=False).total_flops

    def costs(self, refresh: bool) -> Costs:
        return counted(self._compiled.as_text(), refresh)
