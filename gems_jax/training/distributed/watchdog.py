"""Says which step hangs, and where."""

import contextlib
import faulthandler
import sys
import threading
import time
from typing import TextIO


class Watchdog:
    """A thread that speaks up when a phase of the loop takes too long; for a ``with`` statement.

    It ends nothing: a slow file system and a dead one look the same from here.

    Args:
      seconds: in one phase after which it says so, once a phase; 0: it is off.
      out: where to; default: standard error.

    Example:
      >>> import io
      >>> out = io.StringIO()
      >>> with Watchdog(0.3, out) as watchdog:
      ...     watchdog.phase("waiting for data", 7)
      ...     time.sleep(1)
      >>> out.getvalue().splitlines()[0]
      'watchdog: step 7 has been waiting for data for ... s; where its threads are:'
    """

    def __init__(self, seconds: float, out: TextIO | None = None):
        self._seconds = seconds
        self._out = out
        self._now = ("starting", 0, time.monotonic())
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        if self._seconds > 0:
            self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ended.set()
        if self._seconds > 0:
            self._thread.join()

    def phase(self, doing: str, step: int) -> None:
        """Notes what the loop does from now on."""
        self._now = (doing, step, time.monotonic())

    def _watch(self) -> None:
        told = None
        while not self._ended.wait(min(self._seconds / 4, 10.0)):
            now = self._now
            doing, step, since = now
            elapsed = time.monotonic() - since
            if elapsed < self._seconds or now is told:
                continue
            told = now
            out = self._out or sys.stderr
            print(f"watchdog: step {step} has been {doing} for {elapsed:.0f} s; where its threads are:", file=out)
            with contextlib.suppress(OSError, ValueError):  # no real file behind it
                faulthandler.dump_traceback(out)
            out.flush()
