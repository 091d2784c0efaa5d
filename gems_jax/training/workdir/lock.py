"""One process at a time writes to a work directory."""

import json
import os
import socket
import threading
from pathlib import Path

from gems_jax.staging import is_remote
from gems_jax.training.workdir.remote_lock import RemoteLock

NAME = "lock.json"


class WorkdirLock:
    """Holds ``lock.json`` in a work directory, with who holds it; for a ``with`` statement.

    The lock of a process that has died on this machine is taken over. That of another machine cannot be judged
    and is respected. On object stores, see `gems_jax.training.workdir.remote_lock.RemoteLock`.

    Args:
      workdir: made where it is missing.
      active: whether this process writes; the others of a cluster do not.

    Raises:
      ValueError: on entering, another process holds it (named, with what to do).
      OSError: on entering, the directory cannot be written to.

    Example:
      >>> import tempfile
      >>> workdir = Path(tempfile.mkdtemp())
      >>> with WorkdirLock(workdir):
      ...     (workdir / "lock.json").is_file()
      True
      >>> (workdir / "lock.json").exists()
      False
    """

    def __init__(self, workdir: Path, active: bool = True):
        self._path = workdir / NAME
        self._active = active
        self._remote = RemoteLock(self._path) if is_remote(workdir) else None

    def __enter__(self) -> "WorkdirLock":
        if not self._active:
            return self
        if self._remote is not None:
            self._remote.__enter__()
            return self
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            while not self._take():
                self._clear_or_refuse()
        except OSError as error:
            raise OSError(
                f"{self._path.parent} cannot be written to ({error.strerror or error}): make room or change its "
                "permissions, or choose another --workdir"
            ) from error
        return self

    def __exit__(self, *exc: object) -> None:
        if self._active and self._remote is not None:
            self._remote.__exit__(*exc)
        elif self._active:
            self._path.unlink(missing_ok=True)

    def _take(self) -> bool:
        """Makes the file with its content in one go, so that nobody sees half of it."""
        staging = self._path.with_name(f".{NAME}.{os.getpid()}.{threading.get_ident()}")
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "started": _started(os.getpid())}
        staging.write_text(json.dumps(holder), encoding="utf-8")
        try:
            os.link(staging, self._path)  # fails where it exists
        except FileExistsError:
            return False
        finally:
            staging.unlink(missing_ok=True)
        return True

    def _clear_or_refuse(self) -> None:
        try:
            text = self._path.read_text(encoding="utf-8")
            holder = json.loads(text)
            pid, host, started = int(holder["pid"]), str(holder["host"]), holder["started"]
        except FileNotFoundError:
            return
        except (ValueError, TypeError, KeyError):
            raise ValueError(f"{self._path} is damaged: remove it if no other run uses {self._path.parent}") from None
        here = host == socket.gethostname()
        if not here or (_alive(pid) and _started(pid) == started):
            where = "" if here else f" on {host}"
            remedy = "wait for it or choose another --workdir"
            if not here:
                remedy += f"; if it is gone, remove {self._path}"
            raise ValueError(f"{self._path.parent} is in use by process {pid}{where}: {remedy}")
        print(f"train: taking over {self._path.parent} from process {pid}, which is gone")
        # Renamed first: of two that find the same stale lock one removes it.
        stale = self._path.with_name(f".{NAME}.stale.{os.getpid()}.{threading.get_ident()}")
        try:
            os.rename(self._path, stale)
        except FileNotFoundError:
            return
        if stale.read_text(encoding="utf-8") != text:  # another process took it over in between
            os.link(stale, self._path)
        stale.unlink()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _started(pid: int) -> str | None:
    """When a process was started, since numbers are used again; ``None`` where the system does not say."""
    try:
        # The name in parentheses may hold spaces; the start time is the 20th field behind it.
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None
