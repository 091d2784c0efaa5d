"""How many rows of each task a step holds: equally many, by the tables' sizes, or in between."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

Sampling = Literal["equal", "ratio", "temperature"]
# Steps after which counts repeat; also the rarest that a task may be, in steps a row.
CYCLE = 2**16


def sampling_weights(sizes: Sequence[int], sampling: Sampling = "equal", temperature: float = 1.0) -> np.ndarray:
    """float64 ``[T]``, the tasks' shares of the rows: ``size ** (1 / temperature)``, then divided by the sum.

    This is temperature-scaled mixing (arXiv 1910.10683, section 3.5.2); ``ratio`` is temperature 1, which in an epoch
    shows every row of every task once, and ``equal`` its limit for a high one.

    Args:
      sizes: rows of each task.
      sampling: ``equal``, ``ratio`` or ``temperature``.
      temperature: at least 1; only for ``temperature``.

    Raises:
      ValueError: an unknown sampling, or a temperature that is below 1 or has no effect.

    Example:
      >>> sampling_weights([900, 100], "ratio").tolist()
      [0.9, 0.1]
      >>> sampling_weights([900, 100], "temperature", 2.0).tolist()
      [0.75, 0.25]
    """
    if sampling not in get_args(Sampling):
        raise ValueError(f"sampling must be one of {', '.join(get_args(Sampling))}, got {sampling!r}")
    if not temperature >= 1 or not np.isfinite(temperature):
        raise ValueError(f"temperature must be a number from 1 on, got {temperature!r}")
    if sampling != "temperature" and temperature != 1:
        raise ValueError(f"temperature {temperature} has no effect on sampling={sampling!r}; use 'temperature'")
    exponent = 0.0 if sampling == "equal" else 1 / temperature
    weights = np.asarray(sizes, np.float64) ** exponent
    return weights / weights.sum()


class RowPlan:
    """Rows of each task in each step: at most ``batch_size``, their sum the same in all steps.

    The task of the largest share has ``batch_size`` rows a step or a little less, the others in proportion,
    ``n_t = batch_size w_t / max(w)``. Where that is no whole number a step has the next lower or the next higher one,
    by systematic sampling: task ``t`` has ``floor(F_t + u_k) - floor(F_{t-1} + u_k)`` rows in step ``k``, ``F`` the
    running sum of ``n`` and ``u_k`` the ``k``-th number of the van der Corput sequence. So after any number of steps no
    task is more than a few rows off its share, and after 65,536 not one.

    Args:
      sizes: rows of each of ``T`` tasks, all positive.
      batch_size: most rows that a task can have in a step.
      sampling: see `sampling_weights`.
      temperature: see `sampling_weights`.

    Raises:
      ValueError: a task would have less than a row in 65,536 steps, or see `sampling_weights`.

    Example:
      >>> plan = RowPlan([300, 200], batch_size=4, sampling="ratio")
      >>> plan.rows_per_step, [plan.counts(step).tolist() for step in range(4)]
      (6, [[3, 3], [4, 2], [3, 3], [4, 2]])
      >>> plan.before(CYCLE).tolist()
      [235930, 157286]
    """

    def __init__(
        self, sizes: Sequence[int], batch_size: int, sampling: Sampling = "equal", temperature: float = 1.0
    ) -> None:
        weights = sampling_weights(sizes, sampling, temperature)
        self.rows_per_step = max(1, int(np.floor(batch_size * weights.sum() / weights.max() + 1e-9)))
        per_cycle = _apportion(weights, self.rows_per_step * CYCLE)
        if per_cycle.min() < 1:
            raise ValueError(
                f"sampling={sampling!r} leaves the task of {min(sizes):,} rows less than a row in {CYCLE:,} steps "
                f"beside one of {max(sizes):,}; use 'temperature' with a higher temperature, or 'equal'"
            )
        bounds = np.concatenate([np.zeros(1, np.int64), np.cumsum(per_cycle)])
        shifted = (bounds + _van_der_corput(CYCLE)[:, None]) // CYCLE
        self._counts = np.diff(shifted, axis=1)
        self._before = np.concatenate([np.zeros((1, len(weights)), np.int64), np.cumsum(self._counts, axis=0)])

    def counts(self, step: int) -> np.ndarray:
        """int64 ``[T]``, rows of each task in a step."""
        return self._counts[step % CYCLE]

    def before(self, step: int) -> np.ndarray:
        """int64 ``[T]``, rows of each task in all steps before this one."""
        cycles, rest = divmod(step, CYCLE)
        return cycles * self._before[-1] + self._before[rest]


def _apportion(weights: np.ndarray, total: int) -> np.ndarray:
    """Whole numbers of the given sum in proportion to the weights, by largest remainder."""
    exact = weights * total
    # An exact share must not fall to the number below by rounding.
    floors = np.floor(exact + 1e-6).astype(np.int64)
    order = np.argsort(floors - exact, kind="stable")
    floors[order[: total - floors.sum()]] += 1
    return floors


def _van_der_corput(count: int) -> np.ndarray:
    """int64 ``[count]``: 0 to count - 1 with their binary digits reversed; any stretch of them is spread evenly."""
    result = np.zeros(count, np.int64)
    for bit in range(count.bit_length() - 1):
        result |= ((np.arange(count) >> bit) & 1) << (count.bit_length() - 2 - bit)
    return result
