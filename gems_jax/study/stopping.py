"""A study ends at once when told, since every row can go on from where it was."""

import signal
from typing import Any

from gems_jax.training.signals import EXIT_CODES
from gems_jax.training.tune import Stopped


class Stopping:
    """Raises `gems_jax.training.tune.Stopped` at SIGTERM and Ctrl-C; for a ``with`` statement.

    While a run is tuned its own handlers are in place: it saves first and raises the same.
    """

    def __init__(self) -> None:
        self._old: dict[int, Any] = {}

    def __enter__(self) -> "Stopping":
        try:
            for number in EXIT_CODES:
                self._old[number] = signal.signal(number, self._stop)
        except ValueError:  # not in the main thread: whoever owns it decides
            pass
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _stop(self, number: int, frame: object) -> None:
        raise Stopped("stopped by a signal; run again to go on", EXIT_CODES[signal.Signals(number)])
