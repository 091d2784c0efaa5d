"""One process at a time works on a trial, so that several can share a study."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from gems_jax.training.workdir.lock import WorkdirLock

# Seconds between looks at what another process holds.
WAIT = 2.0


@contextlib.contextmanager
def claim(folder: Path) -> Iterator[bool]:
    """Holds a folder against other processes, if none holds it; gives whether it is held.

    The lock is a file made in one go; that of a process of this machine which has died is taken over (see
    `gems_jax.training.workdir.lock`), so that a killed process leaves nothing to clean up.

    Example:
      >>> import tempfile
      >>> folder = Path(tempfile.mkdtemp())
      >>> with claim(folder) as first, claim(folder) as second:
      ...     first, second
      (True, False)
    """
    lock = WorkdirLock(folder)
    try:
        lock.__enter__()
    except ValueError:  # in use
        yield False
        return
    try:
        yield True
    finally:
        lock.__exit__()


@contextlib.contextmanager
def claim_waiting(folder: Path) -> Iterator[None]:
    """`claim`, waiting until another process is done."""
    while True:
        with claim(folder) as held:
            if held:
                yield
                return
        time.sleep(WAIT)
