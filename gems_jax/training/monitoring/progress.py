"""Shows a person how a run goes on: a bar in a terminal, a line now and then elsewhere."""

import resource
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax
from tqdm import tqdm


def memory() -> str:
    """The most memory used so far: of a device where it says so, else of this process.

    Example:
      >>> memory().split()[-1] in ("MiB", "GiB")
      True
    """
    stats = jax.local_devices()[0].memory_stats() or {}
    used = stats.get("peak_bytes_in_use")
    if used is None:
        # Kilobytes on Linux, bytes on macOS.
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return f"{used / 2**30:.1f} GiB" if used >= 2**30 else f"{used / 2**20:.0f} MiB"


def duration(seconds: float) -> str:
    """Hours, minutes, seconds.

    Example:
      >>> duration(3725.4), duration(65)
      ('1:02:05', '1:05')
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Progress:
    """Shows steps made; for a ``with`` statement.

    Args:
      total: steps of the run.
      first: steps made already.
      active: whether this process shows anything.
    """

    def __init__(self, total: int, first: int, active: bool):
        self._total, self._first, self._active = total, first, active
        self._begin = time.perf_counter()
        self._compiled = False
        self._bar: Any = None

    def __enter__(self) -> "Progress":
        if self._active and sys.stderr.isatty():
            self._bar = tqdm(total=self._total, initial=self._first, desc="train", unit="step", mininterval=1.0)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self) -> None:
        """A step was made. The first one compiles, so that the rate is that of the steps after it."""
        if not self._compiled:
            self._compiled, self._begin, self._first = True, time.perf_counter(), self._first + 1
            if self._bar is not None:
                self._bar.unpause()
        if self._bar is not None:
            self._bar.update()

    def line(self, step: int, values: Mapping[str, Any]) -> None:
        """Shows a step's losses, rate, time left and memory."""
        if not self._active:
            return
        losses = {name.removeprefix("loss/"): f"{v:.3f}" for name, v in values.items() if name.startswith("loss/")}
        rate = f"{values.get('tokens_per_second', 0):,.0f} tokens/s"
        if self._bar is not None:
            self._bar.set_postfix(losses | {"rate": rate, "memory": memory()})
            return
        elapsed = time.perf_counter() - self._begin
        made = step - self._first
        left = duration(elapsed / made * (self._total - step)) if made > 0 else "?"
        shown = "  ".join(f"{task} {loss}" for task, loss in losses.items())
        print(f"train: step {step}/{self._total}  loss {shown}  {rate}  {left} left  {memory()}", flush=True)
