"""The service as an ASGI application."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request as Call
from starlette.responses import Response
from starlette.routing import Route

from gems_jax.serving.http.gate import Gate
from gems_jax.serving.http.limits import Limits
from gems_jax.serving.http.metrics import Metrics
from gems_jax.serving.http.routes import Handler, Routes, guarded
from gems_jax.serving.http.service import Service


def make_app(service: Service, limits: Limits, metrics: Metrics, token: str | None = None) -> Starlette:
    """The application of a service, which it starts and stops.

    Args:
      service: that answers.
      limits: of calls.
      metrics: that are told.
      token: that calls must bear; ``None``: none.
    """

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        service.start()
        yield
        await service.stop()

    routes = [
        Route(path, _counted(path, handler, limits, metrics), methods=[method])
        for (method, path), handler in Routes(service, limits, metrics).handlers().items()
    ]
    gate = Middleware(Gate, token=token, max_body=limits.max_body)
    return Starlette(routes=routes, middleware=[gate], lifespan=lifespan)


def _counted(path: str, handler: Handler, limits: Limits, metrics: Metrics) -> Handler:
    # A model takes as long to load as it takes.
    handle = guarded(handler, None if path == "/v1/reload" else limits.timeout)

    async def counted(call: Call) -> Response:
        started, status = time.monotonic(), 500
        try:
            response = await handle(call)
            status = response.status_code
            return response
        finally:
            metrics.called(path, status, time.monotonic() - started)

    return counted
