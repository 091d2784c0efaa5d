"""One process at a time writes to a work directory on an object store, as far as one can say so there."""

import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any

RENEW_SECONDS = 30.0
# Of a holder that has not renewed its lock for so long, it is taken over: machines disappear.
STALE_SECONDS = 300.0
# After which the last one of those that wrote at the same time sees that it was the last.
SETTLE_SECONDS = 1.0


class RemoteLock:
    """Holds a file that says who holds it and since when it is alive; for a ``with`` statement.

    Object stores have no operation by which one of two is refused, so it is written, waited a moment for, and read
    again: of several at once the last one holds it. It is renewed from a thread, so that a machine that is gone does
    not keep its lock.

    Args:
      path: of the file.

    Raises:
      ValueError: on entering, another process holds it (named, with what to do).
    """

    def __init__(self, path: Path):
        self._path = path
        self._token = uuid.uuid4().hex
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lock", daemon=True)

    def __enter__(self) -> "RemoteLock":
        self._refuse_if_held()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._write()
        time.sleep(SETTLE_SECONDS)
        self._refuse_if_held()
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ended.set()
        self._thread.join()
        if (self._read() or {}).get("token") == self._token:
            self._path.unlink(missing_ok=True)

    def _refuse_if_held(self) -> None:
        holder = self._read()
        if holder is None or holder.get("token") == self._token:
            return
        age = time.time() - float(holder.get("renewed", 0.0))
        if age < STALE_SECONDS:
            raise ValueError(
                f"{self._path.parent} is in use by process {holder.get('pid')} on {holder.get('host')} (seen {age:.0f} "
                f"s ago): wait for it or choose another --workdir; one that is gone loses it in {STALE_SECONDS:.0f} s"
            )
        print(f"train: taking over {self._path.parent} from process {holder.get('pid')} on {holder.get('host')}")

    def _read(self) -> dict[str, Any] | None:
        try:
            holder = json.loads(self._path.read_text())
        except FileNotFoundError:
            return None
        except ValueError:
            return {}
        return holder if isinstance(holder, dict) else {}

    def _write(self) -> None:
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "token": self._token, "renewed": time.time()}
        self._path.write_text(json.dumps(holder))

    def _renew(self) -> None:
        while not self._ended.wait(RENEW_SECONDS):
            try:
                self._write()
            except OSError:  # the next time, or the checkpoint that cannot be written either says so
                continue
