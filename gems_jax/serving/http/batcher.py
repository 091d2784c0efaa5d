"""Requests of many calls gathered into batches, one batch at a time, with a bound on waiting and on how many wait."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from gems_jax.serving.answers import Answer
from gems_jax.serving.catalogue import Ranking
from gems_jax.serving.engine import Engine


class FullError(RuntimeError):
    """As many requests wait as may."""


class _Waiting(NamedTuple):
    """A request that waits.

    Args:
      engine: that it was looked up for: its item numbers are this one's.
      ranking: the request.
      answer: to be set.
      since: when it came.
    """

    engine: Engine
    ranking: Ranking
    answer: asyncio.Future[Answer]
    since: float


class Batcher:
    """Ranks requests in the order they come, those of one engine together.

    A batch begins as soon as the one before is done: with all that waits by then, and, where that is less than a batch,
    with what comes until its first request has waited ``max_wait``.

    Args:
      batch_size: most requests of a batch.
      max_wait: in seconds.
      max_queue: most requests that wait.
      ranked: is told the size of each batch and the seconds it took.
    """

    def __init__(
        self, batch_size: int, max_wait: float, max_queue: int, ranked: Callable[[int, float], None] = lambda *_: None
    ):
        self._batch_size, self._max_wait, self._max_queue, self._ranked = batch_size, max_wait, max_queue, ranked
        self._waiting: deque[_Waiting] = deque()
        self._came = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "ranking")
        self._task: asyncio.Task[None] | None = None
        self._busy = False

    @property
    def waiting(self) -> int:
        """Number of requests that wait."""
        return len(self._waiting)

    def start(self) -> None:
        """Begins to rank, in the running event loop."""
        self._task = asyncio.get_running_loop().create_task(self._work())

    async def stop(self) -> None:
        """Ends when all that waits is ranked."""
        while self._waiting or self._busy:
            await asyncio.sleep(0.01)
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._thread.shutdown()

    async def answer(self, engine: Engine, rankings: Sequence[Ranking]) -> list[Answer]:
        """The answers to requests that were looked up by an engine; who stops waiting for them is not ranked any more.

        Raises:
          FullError: too many wait.
        """
        if len(self._waiting) + len(rankings) > self._max_queue:
            raise FullError(f"{len(self._waiting):,} requests wait, and {self._max_queue:,} may: come again")
        loop, now = asyncio.get_running_loop(), time.monotonic()
        answers = [loop.create_future() for _ in rankings]
        self._waiting.extend(
            _Waiting(engine, ranking, answer, now) for ranking, answer in zip(rankings, answers, strict=True)
        )
        self._came.set()
        return list(await asyncio.gather(*answers))

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = await self._next()
            self._busy = True
            rankings = [one.ranking for one in batch]
            started = time.monotonic()
            results = await loop.run_in_executor(self._thread, _ranked, batch[0].engine, rankings)
            self._ranked(len(batch), time.monotonic() - started)
            for one, result in zip(batch, results, strict=True):
                if one.answer.done():  # nobody waits for it any more
                    continue
                if isinstance(result, Exception):
                    one.answer.set_exception(result)
                else:
                    one.answer.set_result(result)
            self._busy = False

    async def _next(self) -> list[_Waiting]:
        """The next batch, when it is full or has waited long enough."""
        while True:
            while not self._waiting:
                self._came.clear()
                await self._came.wait()
            left = self._waiting[0].since + self._max_wait - time.monotonic()
            while len(self._waiting) < self._batch_size and left > 0:
                self._came.clear()
                try:
                    await asyncio.wait_for(self._came.wait(), left)
                except TimeoutError:
                    break
                left = self._waiting[0].since + self._max_wait - time.monotonic()
            batch: list[_Waiting] = []
            while self._waiting and len(batch) < self._batch_size:
                if batch and self._waiting[0].engine is not batch[0].engine:
                    break
                one = self._waiting.popleft()
                if not one.answer.done():
                    batch.append(one)
            if batch:
                return batch


def _ranked(engine: Engine, rankings: Sequence[Ranking]) -> list[Answer | Exception]:
    """Each request's answer, or what went wrong with it: it takes the others of its batch with it no further."""
    try:
        return list(engine.answer(rankings))
    except Exception as error:
        if len(rankings) == 1:
            return [error]
        return [result for ranking in rankings for result in _ranked(engine, [ranking])]
