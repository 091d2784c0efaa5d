"""What a call must pass before its body is read: the token, its kind and its size."""

import hmac
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gems_jax.serving.http.replies import TooLargeError, said

# Of these nothing of the catalogue or its users is told.
OPEN = ("/", "/page.js", "/page.css", "/healthz", "/readyz", "/docs", "/openapi.json")


class Gate:
    """Refuses calls without the token, bodies that are too large, and bodies that a foreign page may send unasked.

    Args:
      app: behind it.
      token: that calls must bear; ``None``: none.
      max_body: bytes.
    """

    def __init__(self, app: ASGIApp, token: str | None, max_body: int):
        self._app, self._max_body = app, max_body
        self._token = None if token is None else token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        refused = self._refused(scope, headers)
        if refused is not None:
            await refused(scope, receive, send)
            return
        await self._app(scope, _Bounded(receive, self._max_body), send)

    def _refused(self, scope: Scope, headers: dict[bytes, bytes]) -> Any:
        if self._token is not None and scope["path"] not in OPEN:
            scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
            # Both are compared to their ends: how long it takes tells nothing of the token.
            same = hmac.compare_digest(given.strip(), self._token)
            if scheme.lower() != b"bearer" or not same:
                return said(401, "give the token: Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"})
        if scope["method"] == "POST":
            kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
            if kind != b"application/json":
                return said(415, "send JSON, with Content-Type: application/json")
            length = headers.get(b"content-length", b"0")
            if not length.isdigit() or int(length) > self._max_body:
                return said(413, str(TooLargeError(self._max_body)))
        return None


class _Bounded:
    """Receives no more than so many bytes."""

    def __init__(self, receive: Receive, most: int):
        self._receive, self._most, self._got = receive, most, 0

    async def __call__(self) -> Message:
        message = await self._receive()
        self._got += len(message.get("body", b""))
        if self._got > self._most:
            raise TooLargeError(self._most)
        return message
