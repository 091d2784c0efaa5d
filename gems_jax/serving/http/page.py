"""The page at ``/`` and what it asks beside rankings: users, items, why, and what rankers without a model say."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from importlib import resources

from starlette.requests import Request as Call
from starlette.responses import JSONResponse, Response

from gems_jax.data.dataset.tables import Item
from gems_jax.serving.beside import Beside
from gems_jax.serving.engine import Engine
from gems_jax.serving.explain import ask, explained
from gems_jax.serving.http.bodies import Bodies, request_of
from gems_jax.serving.http.replies import json_of, said, wrong
from gems_jax.serving.http.service import Service
from gems_jax.serving.requests import RequestError

Handler = Callable[[Call], Awaitable[Response]]
# Users and items that are suggested.
_SUGGESTED = 20
_FILES = {
    "/": ("index.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
}
# Nothing is loaded from elsewhere, and no markup can run but the page's own script.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class Page:
    """The handlers of the page's paths.

    Args:
      service: that answers.
      bodies: of calls.
    """

    def __init__(self, service: Service, bodies: Bodies):
        self._service, self._bodies = service, bodies
        self._beside_of: tuple[Engine, Beside] | None = None

    def handlers(self) -> dict[tuple[str, str], Handler]:
        """Method and path to handler."""
        return {
            **{("GET", path): _file(*file) for path, file in _FILES.items()},
            ("GET", "/v1/users"): self._users,
            ("GET", "/v1/users/{user:path}"): self._user,
            ("GET", "/v1/items"): self._items,
            ("POST", "/v1/explain"): self._explain,
            ("POST", "/v1/beside"): self._beside,
        }

    async def _users(self, call: Call) -> Response:
        catalogue, part = self._service.engine.catalogue, call.query_params.get("like", "")
        found = await asyncio.to_thread(lambda: list(itertools.islice(catalogue.users_like(part), _SUGGESTED)))
        return JSONResponse({"users": found})

    async def _user(self, call: Call) -> Response:
        catalogue, user = self._service.engine.catalogue, call.path_params["user"]
        try:
            events = catalogue.history_of(user)
        except RequestError as error:
            return said(404, error.why)
        return JSONResponse({"user": user, "history": [_item(catalogue.dataset.items[event]) for event in events]})

    async def _items(self, call: Call) -> Response:
        catalogue, part = self._service.engine.catalogue, call.query_params.get("like", "")
        found = await asyncio.to_thread(lambda: list(itertools.islice(catalogue.items_like(part), _SUGGESTED)))
        return JSONResponse({"items": [_item(item) for item in found]})

    async def _explain(self, call: Call) -> Response:
        """What each item of the history does to the score of an item."""
        engine = self._service.engine
        body = self._bodies.explain.model_validate(await json_of(call))
        item_id = str(body.item_id)  # type: ignore[attr-defined]
        item = engine.catalogue.number_of(item_id)
        if item is None:
            return wrong(["item_id"], f"the catalogue has no item {item_id!r}")
        if item in engine.catalogue.removed:
            return wrong(["item_id"], f"item {item_id!r} was removed from the catalogue")
        try:
            question = ask(engine.catalogue.look_up(request_of(body, None)), item)
        except RequestError as error:
            return wrong([error.field], error.why)
        answers = await self._service.answer(engine, question.rankings)
        return JSONResponse(explained(question, answers, engine.catalogue))

    async def _beside(self, call: Call) -> Response:
        """What the base model, where it is kept, popularity and BM25 answer to a request."""
        engine = self._service.engine
        body = self._bodies.rank.model_validate(await json_of(call))
        try:
            ranking = engine.catalogue.look_up(request_of(body, None))
        except RequestError as error:
            return wrong([error.field], error.why)
        if self._beside_of is None or self._beside_of[0] is not engine:
            self._beside_of = engine, Beside(engine.catalogue)
        found = await asyncio.to_thread(self._beside_of[1].rank, ranking)
        if engine.base is not None:
            (answer,) = await self._service.answer(engine.base, [ranking])
            found = {"base model": answer.as_json()["items"]} | found
        return JSONResponse(found)


def _item(item: Item) -> dict[str, str]:
    return {"item_id": item.item_id, "title": item.title}


def _file(name: str, kind: str) -> Handler:
    content = resources.files("gems_jax.serving.http").joinpath("page_files", name).read_bytes()

    async def handle(call: Call) -> Response:
        return Response(content, media_type=kind, headers=_HEADERS)

    return handle
