"""A study ends at once when told, since every trial can go on from where it was."""

import signal

from gems_jax.training.distributed.signals import EXIT_CODES, Handling
from gems_jax.training.tune import Stopped


class Stopping(Handling):
    """Raises `gems_jax.training.tune.Stopped` at SIGTERM and Ctrl-C; for a ``with`` statement.

    While a run is tuned its own handlers are in place: it saves first and raises the same.
    """

    def answer(self, number: int, frame: object) -> None:
        raise Stopped("stopped by a signal; run again to go on", EXIT_CODES[signal.Signals(number)])
