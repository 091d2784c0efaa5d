"""The engine behind the routes: loaded in the background, changed for another without a lost request, drained."""

import asyncio
import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from gems_jax.serving.answers import Answer
from gems_jax.serving.catalogue import Ranking
from gems_jax.serving.engine import Engine
from gems_jax.serving.http.batcher import Batcher
from gems_jax.serving.http.limits import Limits
from gems_jax.serving.http.metrics import Metrics


class NotReadyError(RuntimeError):
    """There is no model yet, or none any more."""


class BusyError(RuntimeError):
    """A model is being loaded already."""


class Service:
    """Answers requests by the engine that it has at the time.

    Args:
      load: makes the engine, from what is on disk now.
      limits: of the service.
      metrics: that it counts in.
      failed: is told why the first engine could not be loaded.
    """

    def __init__(
        self,
        load: Callable[[], Engine],
        limits: Limits,
        metrics: Metrics,
        failed: Callable[[Exception], None] = lambda _: None,
    ):
        self._load, self._metrics, self._failed = load, metrics, failed
        self._batcher = Batcher(limits.batch_size, limits.max_wait, limits.max_queue, metrics.ranked)
        self._loader = ThreadPoolExecutor(1, "loading")
        self._engine: Engine | None = None
        self._loading: asyncio.Task[None] | None = None

    @property
    def engine(self) -> Engine:
        """The engine of requests that come now.

        Raises:
          NotReadyError: there is none.
        """
        if self._engine is None:
            raise NotReadyError("the model is being loaded: come again")
        return self._engine

    @property
    def ready(self) -> bool:
        """Whether requests are answered."""
        return self._engine is not None

    def start(self) -> None:
        """Begins to load the engine, in the running event loop."""
        self._metrics.open()
        self._metrics.waiting.set_function(lambda: self._batcher.waiting)
        self._metrics.ready.set_function(lambda: self.ready)
        self._batcher.start()
        self._loading = asyncio.get_running_loop().create_task(self._first())
        if threading.current_thread() is threading.main_thread():  # others get no signals
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._asked)

    async def stop(self) -> None:
        """Ends when all requests are answered."""
        await self._batcher.stop()
        if self._loading is not None:
            self._loading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._loading
        self._loader.shutdown(cancel_futures=True)
        self._metrics.close()

    async def answer(self, engine: Engine, rankings: Sequence[Ranking]) -> list[Answer]:
        """The answers to requests that were looked up by an engine, see `Batcher.answer`."""
        return await self._batcher.answer(engine, rankings)

    async def reload(self) -> None:
        """Loads the engine anew; requests are answered by the one before until it is there, and if it cannot be loaded.

        Raises:
          BusyError: this is being done already.
        """
        if self._loading is not None and not self._loading.done():
            raise BusyError("a model is being loaded already")
        self._loading = asyncio.get_running_loop().create_task(self._replace())
        # Who has asked for it may go: it is loaded all the same.
        await asyncio.shield(self._loading)

    def _asked(self) -> None:
        """SIGHUP asks for a reload, and nobody waits for it."""
        task = asyncio.get_running_loop().create_task(self.reload())
        task.add_done_callback(_tell)

    async def _first(self) -> None:
        try:
            await self._replace()
        except Exception as error:
            self._failed(error)

    async def _replace(self) -> None:
        try:
            loaded = await asyncio.get_running_loop().run_in_executor(self._loader, self._loaded)
        except Exception:
            self._metrics.reloads.labels("failed").inc()
            raise
        self._engine = loaded
        self._metrics.reloads.labels("done").inc()

    def _loaded(self) -> Engine:
        engine = self._load()
        engine.warm_up()
        return engine


def _tell(task: "asyncio.Task[None]") -> None:
    error = None if task.cancelled() else task.exception()
    print("serve: reloaded" if error is None else f"serve: not reloaded: {error}", file=sys.stderr)
