"""Answers to calls that are no rankings: sentences, and fields that are wrong."""

import json
from typing import Any

from starlette.requests import Request as Call
from starlette.responses import JSONResponse, Response


class NoJsonError(ValueError):
    """The body of a call is no JSON."""


class TooLargeError(ValueError):
    """The body of a call is too large."""

    def __init__(self, most: int):
        super().__init__(f"the body has more than {most:,} bytes: ask for less at once")


def said(status: int, text: str, headers: dict[str, str] | None = None) -> Response:
    """A sentence as an answer."""
    return JSONResponse({"detail": text}, status, headers)


def wrong(place: list[Any], why: str) -> Response:
    """An answer that names a field, by the way to it, and says what is wrong with it."""
    return JSONResponse({"detail": [{"loc": place, "msg": why}]}, 422)


async def json_of(call: Call) -> Any:
    """The values of a call's body.

    Raises:
      NoJsonError: it is none.
    """
    body = await call.body()
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise NoJsonError(f"the body is no JSON: {error}") from None
