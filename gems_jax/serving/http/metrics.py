"""Numbers that a service tells Prometheus."""

from typing import Any

import jax
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_COMPILED = "/jax/core/compile/backend_compile_duration"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counts calls, batches and compilations; programs of JAX are counted while it is open.

    Attributes:
      waiting: requests that wait.
      ready: 1 while requests are answered.
      reloads: by how they ended, ``"done"`` or ``"failed"``.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        of: dict[str, Any] = {"registry": self._registry, "namespace": "gems_jax"}
        self._calls = Counter("calls", "Calls by path and status.", ["path", "status"], **of)
        self._call_seconds = Histogram("call_seconds", "Time of a call.", ["path"], buckets=_SECONDS, **of)
        self._batch_size = Histogram("batch_size", "Requests of a batch.", buckets=_SIZES, **of)
        self._batch_seconds = Histogram("batch_seconds", "Time of ranking a batch.", buckets=_SECONDS, **of)
        self._compilations = Counter("compilations", "Programs that JAX has compiled.", **of)
        self.waiting = Gauge("waiting", "Requests that wait.", **of)
        self.ready = Gauge("ready", "Whether requests are answered.", **of)
        self.reloads = Counter("reloads", "Models and catalogues that were loaded anew.", ["how"], **of)

    def open(self) -> None:
        """Begins to count compilations."""
        jax.monitoring.register_event_duration_secs_listener(self._event)

    def close(self) -> None:
        """Ends it."""
        jax.monitoring.unregister_event_duration_listener(self._event)

    def called(self, path: str, status: int, seconds: float) -> None:
        """A call has ended."""
        self._calls.labels(path, str(status)).inc()
        self._call_seconds.labels(path).observe(seconds)

    def ranked(self, size: int, seconds: float) -> None:
        """A batch has been ranked."""
        self._batch_size.observe(size)
        self._batch_seconds.observe(seconds)

    def text(self) -> bytes:
        """All of it as Prometheus reads it."""
        return generate_latest(self._registry)

    def _event(self, event: str, *_: Any, **__: Any) -> None:
        if event == _COMPILED:
            self._compilations.inc()
