"""The paths of a service and what each does."""

import asyncio
from collections.abc import Awaitable, Callable

from pydantic import ValidationError
from starlette.requests import Request as Call
from starlette.responses import JSONResponse, PlainTextResponse, Response

from gems_jax.serving.http.batcher import FullError
from gems_jax.serving.http.bodies import Body, batch_of, bodies, request_of
from gems_jax.serving.http.limits import Limits
from gems_jax.serving.http.metrics import Metrics
from gems_jax.serving.http.openapi import openapi, openapi_page
from gems_jax.serving.http.page import Page
from gems_jax.serving.http.replies import NoJsonError, TooLargeError, json_of, said, wrong
from gems_jax.serving.http.service import BusyError, NotReadyError, Service
from gems_jax.serving.requests import RequestError

Handler = Callable[[Call], Awaitable[Response]]
# Seconds after which a caller may come again.
_AGAIN = {"Retry-After": "1"}


class Routes:
    """The handlers of a service's paths.

    Args:
      service: that answers.
      limits: of calls.
      metrics: that are told.
    """

    def __init__(self, service: Service, limits: Limits, metrics: Metrics):
        self._service, self._limits, self._metrics = service, limits, metrics
        self._bodies = bodies(limits)
        self._page = Page(service, self._bodies)

    def handlers(self) -> dict[tuple[str, str], Handler]:
        """Method and path to handler."""
        made = self._bodies
        return {
            ("POST", "/v1/recommend"): self._ranking(made.recommend, "rec"),
            ("POST", "/v1/search"): self._ranking(made.search, "src"),
            ("POST", "/v1/rank"): self._ranking(made.rank, None),
            ("POST", "/v1/reload"): self._reload,
            ("GET", "/v1/items/{item_id:path}"): self._item,
            ("GET", "/healthz"): self._healthz,
            ("GET", "/readyz"): self._readyz,
            ("GET", "/metrics"): self._metrics_text,
            ("GET", "/openapi.json"): self._openapi,
            ("GET", "/docs"): self._docs,
            **self._page.handlers(),
        }

    def _ranking(self, one: type[Body], task: str | None) -> Handler:
        """The handler of a path that takes a request, or several as ``requests``."""
        many = batch_of(one, self._limits)

        async def handle(call: Call) -> Response:
            engine = self._service.engine
            values = await json_of(call)
            is_many = isinstance(values, dict) and "requests" in values
            asked = many.model_validate(values).requests if is_many else [one.model_validate(values)]  # type: ignore[attr-defined]
            rankings = []
            for place, body in enumerate(asked):
                try:
                    rankings.append(engine.catalogue.look_up(request_of(body, task)))
                except RequestError as error:
                    return wrong([*(("requests", place) if is_many else ()), error.field], error.why)
            answers = [answer.as_json() for answer in await self._service.answer(engine, rankings)]
            return JSONResponse({"answers": answers} if is_many else answers[0])

        return handle

    async def _reload(self, call: Call) -> Response:
        await self._service.reload()
        catalogue = self._service.engine.catalogue
        return JSONResponse({"reloaded": True, "items": catalogue.ranked, "edited": catalogue.edited})

    async def _item(self, call: Call) -> Response:
        catalogue = self._service.engine.catalogue
        name = call.path_params["item_id"]
        number = catalogue.number_of(name)
        if number is None:
            return said(404, f"the catalogue has no item {name!r}")
        item = catalogue.dataset.items[number]
        known = {"item_id": item.item_id, "title": item.title, "text": item.text}
        return JSONResponse(known | ({"removed": True} if number in catalogue.removed else {}))

    async def _healthz(self, call: Call) -> Response:
        return JSONResponse({"alive": True})

    async def _readyz(self, call: Call) -> Response:
        return JSONResponse({"ready": self._service.ready}, 200 if self._service.ready else 503)

    async def _metrics_text(self, call: Call) -> Response:
        return PlainTextResponse(self._metrics.text(), media_type="text/plain; version=0.0.4")

    async def _openapi(self, call: Call) -> Response:
        return JSONResponse(openapi(self._bodies, self._limits))

    async def _docs(self, call: Call) -> Response:
        return Response(openapi_page(openapi(self._bodies, self._limits)), media_type="text/html")


def guarded(handler: Handler, timeout: float | None) -> Handler:
    """A handler within a time, whose errors are answers that say what is wrong."""

    async def handle(call: Call) -> Response:
        try:
            async with asyncio.timeout(timeout):
                return await handler(call)
        except TimeoutError:
            return said(504, f"there is no answer within {timeout:g} s")
        except ValidationError as error:
            details = [{"loc": list(one["loc"]), "msg": one["msg"]} for one in error.errors(include_url=False)]
            return JSONResponse({"detail": details}, 422)
        except NoJsonError as error:
            return said(400, str(error))
        except TooLargeError as error:
            return said(413, str(error))
        except (FullError, NotReadyError) as error:
            return said(503, str(error), _AGAIN)
        except BusyError as error:
            return said(409, str(error))
        except (ValueError, OSError) as error:
            return said(500, str(error))

    return handle
