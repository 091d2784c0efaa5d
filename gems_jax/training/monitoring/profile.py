"""A profile of some steps, for TensorBoard or Perfetto."""

from pathlib import Path
from typing import Any

import jax


class Profile:
    """Records from before step ``first`` to the end of step ``last``.

    Args:
      steps: first and last, from 1; ``None``: nothing is recorded.
      folder: of the recording.

    Raises:
      ValueError: the last step is before the first.
    """

    def __init__(self, steps: tuple[int, int] | None, folder: Path):
        if steps is not None and not 1 <= steps[0] <= steps[1]:
            raise ValueError(f"train.profile is the first and the last step to profile, from 1; got {list(steps)}")
        self._steps, self._folder = steps, folder
        self._on = False

    def before(self, step: int) -> None:
        """Called before a step is sent."""
        if self._steps is not None and not self._on and self._steps[0] <= step <= self._steps[1]:
            jax.profiler.start_trace(str(self._folder))
            self._on = True

    def after(self, step: int, result: Any) -> None:
        """Called when a step was sent; waits for the last one."""
        if self._on and self._steps is not None and step >= self._steps[1]:
            jax.block_until_ready(result)
            jax.profiler.stop_trace()
            self._on = False
