"""Stopping when told: a SIGTERM noted, and agreed on by all processes."""

import signal
from typing import Any

import jax
import numpy as np


class Signals:
    """Notes a SIGTERM, so that the loop saves and stops after the step in progress, in all processes alike."""

    def __init__(self) -> None:
        self._stop = False
        self._old: Any = None

    def __enter__(self) -> "Signals":
        try:
            self._old = signal.signal(signal.SIGTERM, self._note)
        except ValueError:  # not in the main thread: whoever owns it decides
            self._old = None
        return self

    def __exit__(self, *exc: object) -> None:
        if self._old is not None:
            signal.signal(signal.SIGTERM, self._old)

    def _note(self, *args: object) -> None:
        self._stop = True

    def stopping(self) -> bool:
        if jax.process_count() == 1:
            return self._stop
        from jax.experimental import multihost_utils

        return bool(multihost_utils.process_allgather(np.asarray(self._stop)).any())
