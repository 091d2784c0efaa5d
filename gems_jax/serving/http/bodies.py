"""What calls may hold, in pydantic's words, so that a wrong one names its field; and the same as OpenAPI tells it."""

from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr, create_model

from gems_jax.serving.http.limits import Limits
from gems_jax.serving.requests import Request


class Body(BaseModel):
    """A call's fields; unknown ones are refused."""

    model_config = ConfigDict(extra="forbid")


class Bodies(NamedTuple):
    """The requests of each path.

    Args:
      recommend, search, rank: a request.
      explain: a request of any task, and an item.
    """

    recommend: type[Body]
    search: type[Body]
    rank: type[Body]
    explain: type[Body]


def bodies(limits: Limits) -> Bodies:
    """The bodies of calls within limits."""
    text = Annotated[StrictStr, Field(min_length=1, max_length=limits.max_text)]
    name = text | StrictInt
    names = Annotated[list[name], Field(max_length=limits.max_items)]
    fields: dict[str, Any] = {
        "user": (name | None, Field(None, description="whose history the dataset knows")),
        "history": (names | None, Field(None, description="item ids, oldest first, of someone else")),
        "k": (
            Annotated[StrictInt, Field(ge=1, le=limits.max_k)],
            Field(min(10, limits.max_k), description="number of items"),
        ),
        "allow": (names | None, Field(None, description="item ids to choose from")),
        "deny": (names | None, Field(None, description="item ids to leave out")),
    }
    query = Field(..., description="what to search for")
    any_task: dict[str, Any] = {
        "task": (text, Field(..., description="a task of the run")),
        "query": (text | None, Field(None, description="what to search for, in tasks with queries")),
    }
    return Bodies(
        create_model("Recommend", __base__=Body, **fields),
        create_model("Search", __base__=Body, query=(text, query), **fields),
        create_model("Rank", __base__=Body, **any_task, **fields),
        create_model("Explain", __base__=Body, item_id=(name, Field(..., description="an item")), **any_task, **fields),
    )


def batch_of(body: type[Body], limits: Limits) -> type[Body]:
    """The body of a call with several requests."""
    many = Annotated[list[body], Field(min_length=1, max_length=limits.max_requests)]  # type: ignore[valid-type]
    return create_model(f"{body.__name__}Batch", __base__=Body, requests=(many, ...))


def request_of(body: Body, task: str | None) -> Request:
    """The request that a body holds.

    Raises:
      RequestError: its values cannot be together.
    """
    values = body.model_dump(exclude={"item_id"})
    return Request.of(values, task)
