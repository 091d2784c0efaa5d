"""Stopping when told: signals are noted, and the loop ends after a step that all processes agree on."""

import signal
import sys
from typing import Any, Self

import jax

EXIT_CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}


class Handling:
    """Answers SIGTERM and Ctrl-C with `answer`, which subclasses have; for a ``with`` statement."""

    def __init__(self) -> None:
        self._old: dict[int, Any] = {}

    def __enter__(self) -> Self:
        try:
            for number in EXIT_CODES:
                self._old[number] = signal.signal(number, self.answer)
        except ValueError:  # not in the main thread: whoever owns it decides
            pass
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def answer(self, number: int, frame: object) -> None:
        """Is called between two of the main thread's instructions."""
        raise NotImplementedError


class StopSignals(Handling):
    """Notes SIGTERM and the first Ctrl-C, so that the loop saves and stops; a second Ctrl-C leaves at once.

    For a ``with`` statement. It is enough that one of several processes was told: `code` goes through the step, and
    all read the largest. The earlier handler belongs to JAX in a cluster, see `preemption_notice`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._code = 0

    def answer(self, number: int, frame: object) -> None:
        if number == signal.SIGINT:
            if self._code:
                raise KeyboardInterrupt
            print("\ntrain: stopping after this step and saving; Ctrl-C again leaves at once", file=sys.stderr)
        self._code = self._code or EXIT_CODES[signal.Signals(number)]

    @property
    def code(self) -> int:
        """The exit code that was asked for by a signal, 0 without one."""
        return self._code


def preemption_notice(step: int) -> bool:
    """Whether JAX has learnt that a process of the cluster will be taken away; all processes learn it at the same step.

    Its preemption service hears SIGTERM from the moment that a process joins, so also while it loads and compiles, and
    what else the platform sends. Asking costs nothing as long as there is no notice.

    Args:
      step: number of the step that was just sent; the same on all processes, larger each time.
    """
    if jax.process_count() == 1:
        return False
    from jax.experimental import multihost_utils

    try:
        return bool(multihost_utils.reached_preemption_sync_point(step))
    except RuntimeError:  # the service is switched off (jax_enable_preemption_service)
        return False
