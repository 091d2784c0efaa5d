"""The service as a process: a socket, signals, and an end that waits for the last answer."""

import socket
import sys
from collections.abc import Callable
from pathlib import Path

import uvicorn

from gems_jax.serving.engine import Engine
from gems_jax.serving.http.app import make_app
from gems_jax.serving.http.limits import Limits
from gems_jax.serving.http.metrics import Metrics
from gems_jax.serving.http.service import Service

_LOOPBACK = ("localhost", "::1")
# Seconds after which a connection without a call is closed.
_KEEP_ALIVE = 30


class Server:
    """A service at an address.

    Args:
      load: makes the engine, from what is on disk at the time.
      limits: of the service.
      host: to listen at; a name or number of this machine.
      port: to listen at; 0: one that is free.
      token: that calls must bear; ``None``: none.

    Attributes:
      url: where it listens.

    Raises:
      OSError: the address cannot be had.
    """

    def __init__(
        self,
        load: Callable[[], Engine],
        limits: Limits,
        host: str = "127.0.0.1",
        port: int = 8080,
        token: str | None = None,
    ):
        self._failures: list[Exception] = []
        metrics = Metrics()
        service = Service(load, limits, metrics, self._failed)
        config = uvicorn.Config(
            make_app(service, limits, metrics, token),
            lifespan="on",
            log_config=None,  # what logs elsewhere in the process stays as it is
            log_level="warning",
            access_log=False,
            timeout_keep_alive=_KEEP_ALIVE,
            timeout_graceful_shutdown=int(limits.timeout) + 1,
        )
        self._server = uvicorn.Server(config)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._socket = socket.create_server((host, port), family=family, backlog=1024)
        except OSError as error:
            raise OSError(
                f"--host {host} --port {port} cannot be listened at ({error.strerror}): choose others"
            ) from None
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self._socket.getsockname()[1]}"
        if token is None and not (host in _LOOPBACK or host.startswith("127.")):
            print(
                f"serve: whoever reaches {self.url} may ask: --token_file FILE asks them for a token", file=sys.stderr
            )

    def run(self) -> None:
        """Serves until SIGTERM or Ctrl-C, and then until what was asked is answered.

        Raises:
          Exception: that has kept the model from being loaded.
        """
        try:
            self._server.run(sockets=[self._socket])
        finally:
            self._socket.close()
        if self._failures:
            raise self._failures[0]

    def stop(self) -> None:
        """Ends `run`, from another thread."""
        self._server.should_exit = True

    def _failed(self, error: Exception) -> None:
        self._failures.append(error)
        self.stop()


def read_token(path: str | None) -> str | None:
    """The token in a file, ``None`` where none is named.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it holds no token.
    """
    if path is None:
        return None
    if not Path(path).is_file():
        raise FileNotFoundError(f"--token_file {path} does not exist: write the token into it")
    token = Path(path).read_text(encoding="utf-8").strip()
    if not token or not token.isascii() or any(letter.isspace() for letter in token):
        raise ValueError(f"--token_file {path} must hold one word of ASCII letters")
    return token
