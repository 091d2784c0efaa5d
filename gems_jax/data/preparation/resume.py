"""Keeps what a preparation has finished in a folder beside the dataset's, so that it goes on there after a kill."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # not on Windows: two processes must not prepare one folder at a time there
    fcntl = None  # type: ignore[assignment]

from gems_jax.staging import write_json

SETTINGS = "settings.json"


@contextmanager
def unfinished_folder(out: Path, settings: dict[str, Any], say: Callable[[str], None]) -> Iterator[Path]:
    """The folder of what is finished of ``out``, empty unless a preparation with the same settings was interrupted.

    One process has it at a time, others wait. It is removed when all is done, and where the data cannot be used; what
    else ends the preparation (a kill, a full disk) leaves it for the next one.

    Args:
      out: the dataset's folder.
      settings: what decides its content, JSON values.
      say: takes a line.
    """
    folder = out.with_name(f".{out.name}.unfinished")
    out.parent.mkdir(parents=True, exist_ok=True)
    lock = _locked(folder, say)
    try:
        if _stored(folder / SETTINGS) != settings:
            for entry in folder.iterdir():
                if entry.is_dir():
                    shutil.rmtree(entry)
            write_json(folder / SETTINGS, settings)
        try:
            yield folder
        except (ValueError, TypeError, FileNotFoundError):
            shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


def _stored(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _locked(folder: Path, say: Callable[[str], None]) -> int:
    """An open file that holds the folder's lock, which ends with the process."""
    said = False
    while True:
        folder.mkdir(exist_ok=True)
        try:
            lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT)
        except FileNotFoundError:  # removed in between
            continue
        try:
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The one before may have removed the folder and with it this lock.
            if (folder / "lock").exists() and os.path.samestat(os.fstat(lock), os.stat(folder / "lock")):
                return lock
            os.close(lock)
        except BlockingIOError:
            os.close(lock)
            if not said:
                say(f"data: another process prepares {folder.name[1:].removesuffix('.unfinished')}; waiting for it")
                said = True
            time.sleep(0.5)
        except OSError:
            # A file system without locks.
            return lock


class Pace:
    """How far a row of equal parts is, and how long the rest will take.

    Args:
      total: parts.
      done: parts that were done before, in no time.

    Example:
      >>> pace = Pace(10, done=2)
      >>> pace.of(4, seconds=60.0)
      '40%, 3 min left'
    """

    def __init__(self, total: int, done: int = 0) -> None:
        self._total, self._before = total, done
        self._start = time.perf_counter()

    def of(self, done: int, seconds: float | None = None) -> str:
        """In words, after ``done`` parts; ``seconds`` are those since the beginning."""
        seconds = time.perf_counter() - self._start if seconds is None else seconds
        fresh = done - self._before
        if done >= self._total or fresh <= 0:
            return f"{100 * done // max(self._total, 1)}%"
        left = seconds / fresh * (self._total - done)
        words = f"{left:.0f} s" if left < 90 else f"{left / 60:.0f} min" if left < 5400 else f"{left / 3600:.1f} h"
        return f"{100 * done // self._total}%, {words} left"
